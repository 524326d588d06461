"""Tokens at the local engine: verified as API Gateway's JWT authorizer does, and made for development.

``key_set`` gets the issuer's keys, ``verification`` decides about one token, ``authenticator`` about one request, and
``development`` makes a key and tokens for this machine (`python -m margin_local.tokens`, which is `make token`).
"""
