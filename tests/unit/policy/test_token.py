"""Identity from a signed token: only what a configured public key vouches for is believed."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.utils import base64url_encode

from session_agent.errors import PolicyError
from session_agent.policy.token import Claims, verify

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ELLIPTIC = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> bytes:
    encoding = serialization.Encoding.PEM
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(encoding, form))


def jwks(**keys: rsa.RSAPrivateKey) -> bytes:
    return json.dumps(
        {
            "keys": [
                jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid}
                for kid, key in keys.items()
            ]
        }
    ).encode()


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": int(time.time()) + 60, "groups": ["legal"], **changes}


def token(content: dict[str, Any], key: Any = RSA, algorithm: str = "RS256", kid: str = "") -> str:
    return jwt.encode(content, key, algorithm, headers={"kid": kid} if kid else None)


def refused(text: str, keys: bytes = pem(RSA), wanted: Claims = Claims()) -> str:  # noqa: B008
    with pytest.raises(PolicyError) as caught:
        verify(text, keys, wanted)
    assert text not in str(caught.value) or not text
    return caught.value.message


def test_claims_become_an_identity() -> None:
    content = claims(
        user_id="u7", department="legal", region=["emea", "apac"], level=3, vip=True, odd={"a": 1}
    )
    identity, ends = verify(token(content), pem(RSA), Claims())
    assert (identity.user, identity.user_id, identity.groups) == ("ann", "u7", frozenset({"legal"}))
    assert identity.attributes == {
        "user_id": {"u7"},
        "department": {"legal"},
        "region": {"emea", "apac"},
        "level": {"3"},
        "vip": {"true"},
    }
    assert int(ends.timestamp()) == content["exp"]


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS512"), (RSA, "PS256"), (ELLIPTIC, "ES256"), (EDWARDS, "EdDSA")]
)
def test_keys_and_algorithms(key: Any, algorithm: str) -> None:
    assert verify(token(claims(), key, algorithm), pem(key), Claims())[0].user == "ann"


def test_the_key_is_chosen_by_its_id() -> None:
    keys = jwks(one=OTHER, two=RSA)
    assert verify(token(claims(), kid="two"), keys, Claims())[0].user == "ann"
    assert "Signature verification failed" in refused(token(claims(), kid="one"), keys)
    refused(token(claims(), kid="three"), keys)
    refused(token(claims()), keys)


def test_claims_by_other_names() -> None:
    wanted = Claims(user="email", groups="roles", issuer="https://idp", audience="vault")
    content = claims(email="ann@x", roles=["a"], iss="https://idp", aud=["vault", "other"])
    identity, _ = verify(token(content), pem(RSA), wanted)
    assert (identity.user, identity.groups) == ("ann@x", frozenset({"a"}))
    refused(token(content | {"iss": "https://evil"}), wanted=wanted)
    refused(token(content | {"aud": "other"}), wanted=wanted)
    del content["aud"]
    refused(token(content), wanted=wanted)


class TestForgeries:
    def test_another_key(self) -> None:
        assert "Signature verification failed" in refused(token(claims(), OTHER))

    def test_no_signature(self) -> None:
        refused(jwt.encode(claims(), "", "none"))
        refused(token(claims()).rpartition(".")[0] + ".")

    def test_the_public_key_as_a_shared_secret(self) -> None:
        """The token says HMAC, and is signed with what everybody knows."""
        header = base64url_encode(b'{"alg":"HS256","typ":"JWT"}')
        signed = header + b"." + base64url_encode(json.dumps(claims()).encode())
        signature = hmac.new(pem(RSA), signed, hashlib.sha256).digest()
        refused((signed + b"." + base64url_encode(signature)).decode())

    def test_a_shared_secret_is_no_key(self) -> None:
        secret = b"0123456789abcdef0123456789abcdef"
        oct_key = json.dumps({"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"})
        refused(jwt.encode(claims(), secret, "HS256"), oct_key.encode())

    def test_changed_claims(self) -> None:
        header, _, signature = token(claims()).split(".")
        body = base64url_encode(json.dumps(claims(groups=["executive"])).encode()).decode()
        refused(f"{header}.{body}.{signature}")

    @pytest.mark.parametrize(("name", "seconds"), [("exp", -1), ("nbf", 600)])
    def test_out_of_time(self, name: str, seconds: int) -> None:
        refused(token(claims(**{name: int(time.time()) + seconds})))

    def test_nobody(self) -> None:
        refused(token(claims(sub="")))

    @pytest.mark.parametrize("name", ["exp", "sub"])
    def test_without_what_is_required(self, name: str) -> None:
        content = claims()
        del content[name]
        refused(token(content))

    @pytest.mark.parametrize("text", ["", "x", "a.b.c", "ä.ö.ü", "." * 10_000])
    def test_nonsense(self, text: str) -> None:
        refused(text)

    @pytest.mark.parametrize(
        "keys", [b"", b"{}", b"[]", b'{"keys": 7}', b"-----BEGIN PUBLIC KEY-----"]
    )
    def test_unusable_keys(self, keys: bytes) -> None:
        refused(token(claims()), keys)
