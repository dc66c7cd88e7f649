"""What can go wrong, whose fault it is, what the caller is told and whether to try again.

Owns every refusal's code, HTTP status and wording. Imports nothing of the project. A message never holds a
secret, an upstream's name or bytes that a client sent, so that it can be shown and logged as it is.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Source(Enum):
    """Whose fault an error is."""

    CLIENT = "client"
    STATION = "station"
    UPSTREAM = "upstream"


class Retry(Enum):
    """What the relay itself may do next."""

    NO = "no"  # the answer would be the same
    NEXT = "next"  # another candidate, mirror or credential may do better
    REPLAY = "replay"  # a stale pooled connection: once more on a fresh one


class ProxyError(Exception):
    """A refusal or a failure with everything that its answer needs.

    `code` is the machine-readable name that clients see (OpenAI's `error.code`), `kind` the family that
    each dialect maps to its own type, `status` the HTTP status. `retry_after_s` becomes `retry-after`.
    `should_retry` False becomes `x-should-retry: false`: SDKs then give up at once where a retry would
    only cost. `detail` goes to the log, never to the caller.
    """

    code: ClassVar[str] = "internal_error"
    status: int = 500
    kind: ClassVar[str] = "server_error"
    source: ClassVar[Source] = Source.STATION
    retry: ClassVar[Retry] = Retry.NO
    text: ClassVar[str] = "The relay could not serve this request."
    should_retry: bool | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message or self.text)
        self.message = message or self.text
        if status is not None:
            self.status = status
        self.param = param
        self.retry_after_s = retry_after_s
        self.detail = detail


# -- the client's fault --------------------------------------------------------------------------


class ClientFault(ProxyError):
    """The request cannot be served as it is."""

    code = "invalid_request"
    status = 400
    kind = "invalid_request_error"
    source = Source.CLIENT
    text = "The request is not valid."
    should_retry: bool | None = False


class MalformedRequest(ClientFault):
    """Not HTTP as RFC 9112 wants it, or a path trick."""

    code = "malformed_request"
    text = "The request could not be understood."


class MissingKey(ClientFault):
    code = "missing_api_key"
    status = 401
    kind = "authentication_error"
    text = "No API key was given. Send it as 'Authorization: Bearer sk-...', 'api-key' or 'x-api-key'."


class InvalidKey(ClientFault):
    code = "invalid_api_key"
    status = 401
    kind = "authentication_error"
    text = "Incorrect API key provided."


class KeyExpired(InvalidKey):
    code = "api_key_expired"
    text = "The API key has expired."


class AccountFrozen(ClientFault):
    code = "account_frozen"
    status = 403
    kind = "permission_error"
    text = "This account is not active."


class AddressNotAllowed(ClientFault):
    code = "address_not_allowed"
    status = 403
    kind = "permission_error"
    text = "This API key may not be used from this address."


class ModelNotPermitted(ClientFault):
    code = "model_not_permitted"
    status = 403
    kind = "permission_error"
    text = "This API key may not use this model."


class RouteNotPermitted(ClientFault):
    code = "route_not_permitted"
    status = 403
    kind = "permission_error"
    text = "This API key may not use this path or endpoint."


class UnknownPath(ClientFault):
    code = "unknown_path"
    status = 404
    kind = "not_found_error"
    text = "There is nothing at this path."


class MethodNotAllowed(ClientFault):
    code = "method_not_allowed"
    status = 405
    text = "This path does not take this method."


class UnknownId(ClientFault):
    """Nobody's or another account's: a caller cannot tell."""

    code = "object_not_found"
    status = 404
    kind = "not_found_error"
    text = "There is no such object, or you do not have access to it."


class IdsApart(ClientFault):
    code = "objects_apart"
    text = "The objects that this request names cannot be used together, or not with this model."


class SubmitInProgress(ClientFault):
    code = "submit_in_progress"
    status = 409
    text = "The same task is being submitted. Ask again for its answer."


class SubmitLost(ClientFault):
    """Another attempt might start a second job."""

    code = "submit_outcome_unknown"
    status = 409
    should_retry = False
    text = "What the first of these submits was answered is not known. Look at your tasks before you go on."


class KeyReused(ClientFault):
    code = "idempotency_key_reused"
    status = 422
    text = "This Idempotency-Key was used for another request."


class UnknownModel(ClientFault):
    code = "model_not_found"
    status = 404
    kind = "not_found_error"
    text = "This model does not exist here, or you do not have access to it."


class ModelMissing(ClientFault):
    code = "model_missing"
    text = "The request names no model."


class ModelNotPriced(ClientFault):
    code = "model_not_priced"
    status = 403
    kind = "permission_error"
    text = "This model has no price here and cannot be used."


class OptionNotPriced(ClientFault):
    code = "option_not_priced"
    text = "A requested option has no price here and cannot be used."


class BodyNotJson(ClientFault):
    code = "body_not_json"
    text = "The request body is not a JSON object."


class DuplicateMember(ClientFault):
    code = "duplicate_member"
    text = "A member of the request body appears more than once."


class ParameterRefused(ClientFault):
    code = "parameter_refused"
    text = "A parameter of the request is outside of what is allowed here."


class ContextExceeded(ParameterRefused):
    code = "context_length_exceeded"


class BodyTooLarge(ClientFault):
    code = "request_too_large"
    status = 413
    kind = "request_too_large"
    text = "The request body is larger than this path allows."


class UnsupportedCoding(ClientFault):
    code = "unsupported_content_encoding"
    status = 415
    text = "The Content-Encoding of the request body is not understood here."


class ExpectationFailed(ClientFault):
    code = "expectation_failed"
    status = 417
    text = "Only 'Expect: 100-continue' is understood."


class BodyTimeout(ClientFault):
    code = "request_timeout"
    status = 408
    kind = "timeout_error"
    text = "The request body did not arrive in time."


class NoCredit(ClientFault):
    code = "insufficient_quota"
    status = 429
    kind = "insufficient_quota"
    text = "This account has not enough credit for this request."


class LimitExceeded(ClientFault):
    code = "rate_limit_exceeded"
    status = 429
    kind = "rate_limit_error"
    text = "Too many requests. Try again later."
    should_retry: bool | None = None
    fields: tuple[tuple[bytes, bytes], ...] = ()  # headers that tell the limit


class InvalidNotice(ClientFault):
    """A message about a payment without a valid proof of who sent it."""

    code = "invalid_notice"
    status = 401
    kind = "authentication_error"
    text = "This message is not signed as it has to be."


class NoticeRefused(ClientFault):
    """It is proven, but fits no order or payment."""

    code = "notice_refused"
    status = 409
    text = "There is no such order or payment, or it is for another amount."


class SignInFailed(ClientFault):
    code = "sign_in_failed"
    status = 401
    kind = "authentication_error"
    text = "The name or the password is not right."


# -- the station's fault -------------------------------------------------------------------------


class StationFault(ProxyError):
    """We cannot serve although the request is fine."""

    code = "station_unavailable"
    status = 503
    source = Source.STATION
    text = "The relay is not ready. Try again shortly."


class JournalUnavailable(StationFault):
    code = "journal_unavailable"
    text = "The relay cannot record usage at the moment and takes no new calls. Try again later."


class KeyLookupUnavailable(StationFault):
    code = "key_lookup_unavailable"
    text = "The relay cannot check this API key at the moment. Try again shortly."


class BindingLookupUnavailable(StationFault):
    code = "object_lookup_unavailable"
    text = "The relay cannot check whose objects this request names at the moment. Try again shortly."


class SubmissionLookupUnavailable(StationFault):
    code = "submit_lookup_unavailable"
    text = "The relay cannot tell at the moment whether this was submitted before. Try again shortly."


class Overloaded(StationFault):
    code = "overloaded"
    text = "The relay is at its limit. Try again shortly."


class InternalError(ProxyError):
    """A bug. The traceback goes to the log without header bytes; the caller gets this line."""


# -- the upstream's fault ------------------------------------------------------------------------


class UpstreamFault(ProxyError):
    """The upstream failed; `retry` says what the relay may do about it."""

    code = "upstream_error"
    status = 502
    source = Source.UPSTREAM
    retry = Retry.NEXT
    text = "The model provider failed to answer. Try again."


class UpstreamConnectFailed(UpstreamFault):
    code = "upstream_connect_failed"
    text = "The model provider could not be reached. Try again."


class UpstreamStale(UpstreamFault):
    """A pooled connection closed before one byte of answer arrived."""

    code = "upstream_stale"
    retry = Retry.REPLAY


class UpstreamClosed(UpstreamFault):
    """A fresh connection closed without an answer: the request may have been acted on."""

    code = "upstream_closed"
    text = "The model provider closed the connection without an answer."


class UpstreamGarbage(UpstreamFault):
    """Not HTTP, or HTTP that must not be trusted (RFC 9112 6.3)."""

    code = "upstream_protocol_error"
    text = "The model provider's answer was not valid."


class UpstreamTimeout(UpstreamFault):
    code = "upstream_timeout"
    status = 504
    text = "The model provider did not answer in time."


class UpstreamRefused(UpstreamFault):
    """An unhappy answer that is not the client's fault (5xx, our credential)."""

    code = "upstream_unavailable"
    text = "The model provider cannot serve this request at the moment."


class UpstreamBusy(UpstreamFault):
    """429 or 529 at every candidate."""

    code = "upstream_rate_limited"
    status = 429
    kind = "rate_limit_error"
    text = "The model provider is at its limit. Try again later."


class CredentialsCooling(UpstreamFault):
    """Every credential of every candidate is cooling down."""

    code = "upstream_unavailable"
    status = 503
    text = "No model provider can take this request at the moment. Try again later."


class TimeLimit(UpstreamFault):
    """The total deadline of the call."""

    code = "time_limit"
    status = 504
    retry = Retry.NO
    text = "The call took longer than is allowed here."
    should_retry = False


# -- the operator's mistakes ---------------------------------------------------------------------


class ConfigError(Exception):
    """routes.yaml cannot be used. `mistakes` are lines `FILE:LINE:COL: path: what`, never empty."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class StateError(Exception):
    """A record was asked to do what its state forbids; names the state it is in."""
