"""Certificates for tests, made with openssl: an authority, a server on loopback, a client."""

import subprocess


def _openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(folder, name="ca"):
    """Make FOLDER/NAME.pem and its key."""
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")),
    )


def make_certificate(folder, name, authority="ca"):
    """Make FOLDER/NAME.pem with a key (PKCS#8) and a certificate, valid for 127.0.0.1."""
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", str(key), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", "30", "-extfile", str(extensions)),
        *("-CA", str(folder / f"{authority}.pem"), "-CAkey", str(folder / f"{authority}.key")),
        *("-CAcreateserial", "-out", str(certificate)),
    )
    (folder / f"{name}.pem").write_text(key.read_text() + certificate.read_text())
