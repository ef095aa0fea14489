"""Currencies that people pay in: the active codes of ISO 4217.

Source: list one of ISO 4217 (SIX Financial Information, its maintenance agency), as of 2026: ANG,
BGN and CUC are gone, XCG and ZWG are there. Left out are funds (BOV, CHE, CHW, CLF, COU, MXV, USN,
UYI, UYW), metals and bond units (XAU, XBA, …), units of account (XAD, XDR, XSU, XUA), and what is
for tests or for no currency (XTS, XXX). A test compares it with pycountry's.
"""

from __future__ import annotations

_LISTED = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD
    CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP
    GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD
    KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN
    NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP
    SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES
    VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
ACTIVE = frozenset(_LISTED.split())
