"""Why a request to InfluxDB got no answer, in words that say what to fix.

The words repeat nothing that was sent: no token, no header, no password of a proxy.
"""

from __future__ import annotations

import re
import ssl

__all__ = ["no_answer_reason", "system_reason"]

# TLS alerts of a server that requires a client certificate, or a different one.
_ABOUT_OUR_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
_TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d+)")


def no_answer_reason(error: Exception, seconds: float) -> tuple[str, str, BaseException]:
    """Return the reason, a short stable word for it, and the underlying error.

    Args:
        error: What urllib3, http.client or the system raised.
        seconds: How long the request took.
    """
    chain = _chain(error)
    cause = chain[-1]
    where = "the proxy: " if any(type(e).__name__ == "ProxyError" for e in chain) else ""
    if any("Timeout" in type(e).__name__ for e in chain):
        return f"{where}no answer within {seconds:.3g} s", "timeout", cause
    word = type(cause).__name__
    if isinstance(cause, ssl.SSLError):
        return where + _tls_reason(cause), word, cause
    if word == "CertificateError":  # from urllib3 1, which compares host names itself
        return f"{where}certificate verify failed: {cause}; check influxdb.url", word, cause
    if isinstance(cause, OSError):
        return where + _system_words(cause), word, cause
    if word == "ProxySchemeUnknown":
        why = "the proxy in the environment must begin with http:// or https://"
        return why, word, cause
    if isinstance(cause, ValueError):
        why = "the token, a header, the url or the proxy's holds characters that HTTP cannot carry"
        return why, word, cause
    return where + word, word, cause


def system_reason(error: Exception) -> str:
    """Say why a file could not be used."""
    if isinstance(error, ssl.SSLError):
        return f"no PEM file of what is needed here ({error.reason or 'unreadable'})"
    return getattr(error, "strerror", None) or type(error).__name__


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = (
            "check influxdb.url"
            if "mismatch" in error.verify_message
            else "name the server's authority in influxdb.ca_file"
        )
        return f"certificate verify failed: {error.verify_message}; {advice}"
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "it does not speak TLS; check influxdb.url"
    if "ALERT" in reason and any(word in reason for word in _ABOUT_OUR_CERTIFICATE):
        return f"it wants a client certificate that it trusts; set influxdb.cert_file ({reason})"
    if isinstance(error, ssl.SSLEOFError):
        return "it ended TLS; if it wants a client certificate, set influxdb.cert_file"
    return f"TLS: {reason}"


def _system_words(error: OSError) -> str:
    refused = _TUNNEL_STATUS.search(str(error))
    if refused:
        return f"it answered {refused.group(1)}; check the proxy in the environment, and its login"
    # Our own text, or only the type's name: http.client's text may quote what a server sent.
    own = str(error) if type(error) is ConnectionError else type(error).__name__
    return error.strerror or own


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, down to the first that is not urllib3's."""
    chain = [error]
    while type(chain[-1]).__module__.startswith("urllib3.") and len(chain) < 10:
        reason = getattr(chain[-1], "reason", None)
        inner = reason if isinstance(reason, BaseException) else chain[-1].__cause__
        inner = inner or chain[-1].__context__
        if inner is None:
            break
        chain.append(inner)
    return chain
