"""Where webhooks may go: public addresses, and nothing that leads inside by any notation."""

from __future__ import annotations

import ipaddress

import pytest
from busbar_billing.domain.web_targets import Target, TargetPolicy, check_address, read_target
from busbar_errors import Rejected
from hypothesis import given
from hypothesis import strategies as st

STRICT = TargetPolicy()
ON_PREMISES = TargetPolicy(allow_http=True, allowed_networks=(ipaddress.ip_network("10.1.0.0/16"),))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", Target("https", "example.com", 443, "/")),
        ("https://Hooks.Example.COM/in?a=1", Target("https", "hooks.example.com", 443, "/in?a=1")),
        ("https://example.com:8443/", Target("https", "example.com", 8443, "/")),
        ("https://xn--bcher-kva.example/", Target("https", "xn--bcher-kva.example", 443, "/")),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/")),
        ("https://[2606:4700::1111]/", Target("https", "2606:4700::1111", 443, "/")),
    ],
)
def test_public_addresses_over_tls_are_taken(url: str, target: Target) -> None:
    assert read_target(url, STRICT) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://example.com/",
        "ftp://example.com/",
        "https:///path",
        "//example.com",
        "https://example.com /",
        "https://example.com\\@127.0.0.1/",
        "https://example.com\r\nhost: x/",
        "https://example.com/#fragment",
        "https://user:word@example.com/",
        "https://example.com@127.0.0.1/",
        "https://exämple.com/",
        "https://-example.com/",
        "https://example..com/",
        "https://example.com./",
        "https://exa_mple.com/",
        "https://example.com%2f/",
        "https://example.com:22/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:x/",
        "https://" + "a." * 200 + "com/",
        "https://example.com/" + "x" * 2_000,
        # Inside, by name.
        "https://localhost/",
        "https://postgres/",
        "https://billing.busbar.svc.cluster.local/",
        "https://metadata.google.internal/",
        "https://app.localhost/",
        "https://1.0.0.127.in-addr.arpa/",
        # Inside, by address, in every notation that a resolver reads.
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://017700000001/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://172.31.255.255/",
        "https://192.168.1.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://168.63.129.16/",
        "https://198.18.0.1/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://[::]/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[fe80::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fd00:ec2::254]/",
        "https://[fc00::1]/",
        "https://[ff02::1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:7f00:1::]/",
        "https://[2001:db8::1]/",
        "https://[::1",
    ],
)
def test_what_leads_inside_or_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(Rejected):
        read_target(url, STRICT)


def test_the_operator_may_allow_networks_of_its_own_and_no_others() -> None:
    assert read_target("http://10.1.2.3:8080/x", ON_PREMISES).host == "10.1.2.3"
    assert read_target("http://receiver/x", ON_PREMISES).host == "receiver"
    assert read_target("https://[::ffff:10.1.2.3]/", ON_PREMISES).port == 443
    for url in ("http://10.2.0.1/", "http://127.0.0.1/", "http://[::1]/", "https://2130706433/"):
        with pytest.raises(Rejected):
            read_target(url, ON_PREMISES)


@given(st.ip_addresses())
def test_what_python_takes_for_private_is_never_connected_to(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    try:
        check_address(address, STRICT)
    except Rejected:
        return
    reached = getattr(address, "ipv4_mapped", None) or address
    assert reached.is_global
    assert not reached.is_multicast
    assert not reached.is_reserved


@given(st.text(alphabet="htps:/[]@.0123456789abcdefx%?#\\ \n", max_size=60))
def test_whatever_is_given_is_refused_or_leads_to_one_host(text: str) -> None:
    try:
        target = read_target(f"https://{text}", STRICT)
    except Rejected:
        return
    assert target.scheme == "https"
    assert target.host
    assert target.path.startswith(("/", "?"))
    assert not set(target.host) & set("@/\\[]%? \n")
