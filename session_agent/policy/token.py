"""An identity from the claims of a JSON Web Token (RFC 7519) whose signature is verified.

Only public keys are accepted: PEM, or a JWKS file (RFC 7517). What kind of key it is decides on the
algorithms that are accepted, never the token; a shared secret would let whoever can verify a token make one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from session_agent.errors import PolicyError
from session_agent.policy.identity import Identity

_HINT = "The user counts as unknown until there is a token that is valid."
_REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})
_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claims are read, and which are demanded."""

    user: str = "sub"
    groups: str = "groups"
    issuer: str | None = None
    audience: str | None = None


def verify(token: str, keys: bytes, wanted: Claims) -> tuple[Identity, datetime]:
    """The identity that the token vouches for, and when it ends.

    Raises PolicyError, whose message never holds the token. Claims other than the user, the groups and the
    registered ones become attributes, where they are text, whole numbers, or lists of text.
    """
    # Slow to import, and large: most sessions have no token.
    import jwt  # noqa: PLC0415

    try:
        header = jwt.get_unverified_header(token)
        key, algorithms = _key(keys, header.get("kid"))
        claims = jwt.decode(
            token,
            key,
            algorithms=list(algorithms),
            issuer=wanted.issuer,
            audience=wanted.audience,
            options={
                "require": ["exp", wanted.user],
                "verify_aud": wanted.audience is not None,
                "verify_iss": wanted.issuer is not None,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, jwt.InvalidTokenError) else type(error).__name__
        raise PolicyError(f"The identity token is not accepted: {reason}.", _HINT) from None
    user = claims[wanted.user]
    if not isinstance(user, str) or not user:
        raise PolicyError(f"The identity token's claim {wanted.user} is no text.", _HINT)
    attributes = {
        name: values
        for name, claim in claims.items()
        if name not in _REGISTERED and name not in (wanted.user, wanted.groups)
        if (values := _texts(claim)) is not None
    }
    user_id = claims.get("user_id")
    identity = Identity(
        user,
        user_id if isinstance(user_id, str) else "",
        _texts(claims.get(wanted.groups)) or frozenset(),
        attributes,
    )
    return identity, datetime.fromtimestamp(int(claims["exp"]), UTC)


def _texts(claim: Any) -> frozenset[str] | None:
    values = claim if isinstance(claim, list) else [claim]
    if not all(isinstance(value, str | int) for value in values):
        return None
    return frozenset(
        str(value).lower() if isinstance(value, bool) else str(value) for value in values
    )


def _key(keys: bytes, kid: object) -> tuple[Any, tuple[str, ...]]:
    """The key that is meant, and what it may have signed with."""
    import jwt  # noqa: PLC0415

    if keys.lstrip().startswith(b"{"):
        given = json.loads(keys)
        found = given.get("keys", [given])
    else:
        found = [_from_pem(keys)]
    usable = [key for key in found if key.get("kty") in _ALGORITHMS]
    if kid is not None and any("kid" in key for key in usable):
        usable = [key for key in usable if key.get("kid") == kid]
    if len(usable) != 1:
        raise jwt.InvalidKeyError("the keys file has no single public key for it")
    algorithms = _ALGORITHMS[usable[0]["kty"]]
    stated = usable[0].get("alg")
    if stated is not None:
        algorithms = tuple(name for name in algorithms if name == stated)
    public = {name: value for name, value in usable[0].items() if name != "alg"}
    return jwt.PyJWK.from_dict(public).key, algorithms


def _from_pem(keys: bytes) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from jwt import algorithms  # noqa: PLC0415

    key = load_pem_public_key(keys)
    if isinstance(key, rsa.RSAPublicKey):
        return algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return algorithms.OKPAlgorithm.to_jwk(key, as_dict=True)
    raise ValueError("a key of a kind that is not accepted")
