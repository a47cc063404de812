"""Certificates for tests: an authority, and what it issues for localhost."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        others = "digital_signature content_commitment key_encipherment data_encipherment key_agreement crl_sign"
        signs = dict.fromkeys([*others.split(), "encipher_only", "decipher_only"], False)
        own = (
            self._builder(self._name, self._key)
            .add_extension(constraints, critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, **signs), critical=True)
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, folder: Path, serial: int, *, password: bytes | None = None) -> None:
        """Write `tls.pem` and `tls.key` for localhost into a folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        built = self._builder(name, key, serial).add_extension(names, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = built.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        (folder / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
        (folder / "tls.key").write_bytes(key.private_bytes(*form))

    def _builder(self, name: x509.Name, key: Any, serial: int = 1) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
