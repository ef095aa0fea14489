"""The real parts on a bare machine: NATS, Postgres, Triton and the five services.

Used by the developer's launcher (`./just up`) and by the tests; nothing in production imports it.
"""
