from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Directive(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTIVE_UNSPECIFIED: _ClassVar[Directive]
    CONTINUE: _ClassVar[Directive]
    ABORT_TASK: _ClassVar[Directive]
    STOP: _ClassVar[Directive]

class ClientState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIENT_STATE_UNSPECIFIED: _ClassVar[ClientState]
    FETCHING_MODEL: _ClassVar[ClientState]
    TRAINING: _ClassVar[ClientState]
    SUBMITTING_UPDATE: _ClassVar[ClientState]
    WAITING: _ClassVar[ClientState]
    IDLE: _ClassVar[ClientState]
    ERROR: _ClassVar[ClientState]
DIRECTIVE_UNSPECIFIED: Directive
CONTINUE: Directive
ABORT_TASK: Directive
STOP: Directive
CLIENT_STATE_UNSPECIFIED: ClientState
FETCHING_MODEL: ClientState
TRAINING: ClientState
SUBMITTING_UPDATE: ClientState
WAITING: ClientState
IDLE: ClientState
ERROR: ClientState

class Session(_message.Message):
    __slots__ = ("run_id", "client_id", "token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    token: str
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class RegisterClientRequest(_message.Message):
    __slots__ = ("client_id", "protocol_version", "codec", "accepts", "evaluates", "instance")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    protocol_version: int
    codec: str
    accepts: _containers.RepeatedScalarFieldContainer[str]
    evaluates: bool
    instance: str
    def __init__(self, client_id: _Optional[str] = ..., protocol_version: _Optional[int] = ..., codec: _Optional[str] = ..., accepts: _Optional[_Iterable[str]] = ..., evaluates: bool = ..., instance: _Optional[str] = ...) -> None: ...

class RegisterClientResponse(_message.Message):
    __slots__ = ("status", "message", "session", "codec", "heartbeat_interval", "heartbeat_timeout", "delta_codec", "retry_spread", "keeps")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[RegisterClientResponse.Status]
        ACCEPTED: _ClassVar[RegisterClientResponse.Status]
    STATUS_UNSPECIFIED: RegisterClientResponse.Status
    ACCEPTED: RegisterClientResponse.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DELTA_CODEC_FIELD_NUMBER: _ClassVar[int]
    RETRY_SPREAD_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    status: RegisterClientResponse.Status
    message: str
    session: Session
    codec: str
    heartbeat_interval: float
    heartbeat_timeout: float
    delta_codec: str
    retry_spread: float
    keeps: bool
    def __init__(self, status: _Optional[_Union[RegisterClientResponse.Status, str]] = ..., message: _Optional[str] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., codec: _Optional[str] = ..., heartbeat_interval: _Optional[float] = ..., heartbeat_timeout: _Optional[float] = ..., delta_codec: _Optional[str] = ..., retry_spread: _Optional[float] = ..., keeps: bool = ...) -> None: ...

class Scalar(_message.Message):
    __slots__ = ("boolean", "integer", "real", "text", "raw", "list")
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    boolean: bool
    integer: int
    real: float
    text: str
    raw: bytes
    list: ScalarList
    def __init__(self, boolean: bool = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ..., raw: _Optional[bytes] = ..., list: _Optional[_Union[ScalarList, _Mapping]] = ...) -> None: ...

class ScalarList(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Scalar]
    def __init__(self, items: _Optional[_Iterable[_Union[Scalar, _Mapping]]] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape", "alias_of")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ALIAS_OF_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    alias_of: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., alias_of: _Optional[str] = ...) -> None: ...

class Tensors(_message.Message):
    __slots__ = ("infos",)
    INFOS_FIELD_NUMBER: _ClassVar[int]
    infos: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    def __init__(self, infos: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("codec", "shard_bytes", "frames", "tensors", "digest", "base")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SHARD_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    codec: str
    shard_bytes: int
    frames: _containers.RepeatedScalarFieldContainer[int]
    tensors: Tensors
    digest: str
    base: str
    def __init__(self, codec: _Optional[str] = ..., shard_bytes: _Optional[int] = ..., frames: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Union[Tensors, _Mapping]] = ..., digest: _Optional[str] = ..., base: _Optional[str] = ...) -> None: ...

class GetGlobalModelRequest(_message.Message):
    __slots__ = ("session", "wait_seconds", "task_id", "holds", "offset", "total_bytes", "stream", "last")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    session: Session
    wait_seconds: float
    task_id: str
    holds: str
    offset: int
    total_bytes: int
    stream: bool
    last: LastModel
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., wait_seconds: _Optional[float] = ..., task_id: _Optional[str] = ..., holds: _Optional[str] = ..., offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., stream: bool = ..., last: _Optional[_Union[LastModel, _Mapping]] = ...) -> None: ...

class LastModel(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "kind", "round", "base_digest", "config", "upload", "partial", "difference")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Task.Kind]
        FIT: _ClassVar[Task.Kind]
        EVALUATE: _ClassVar[Task.Kind]
        INITIALIZE: _ClassVar[Task.Kind]
    KIND_UNSPECIFIED: Task.Kind
    FIT: Task.Kind
    EVALUATE: Task.Kind
    INITIALIZE: Task.Kind
    class ConfigEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: Task.Kind
    round: int
    base_digest: str
    config: _containers.MessageMap[str, Scalar]
    upload: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    partial: bool
    difference: bool
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[Task.Kind, str]] = ..., round: _Optional[int] = ..., base_digest: _Optional[str] = ..., config: _Optional[_Mapping[str, Scalar]] = ..., upload: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., partial: bool = ..., difference: bool = ...) -> None: ...

class GetGlobalModelResponse(_message.Message):
    __slots__ = ("task", "wait", "finished", "committed", "manifest", "stream", "body")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    task: Task
    wait: Wait
    finished: Finished
    committed: Committed
    manifest: Manifest
    stream: bool
    body: bytes
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., stream: bool = ..., body: _Optional[bytes] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class ModelChunk(_message.Message):
    __slots__ = ("chunk_index", "total_chunks", "is_final_chunk", "crc32c", "chunk_data")
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CHUNK_DATA_FIELD_NUMBER: _ClassVar[int]
    chunk_index: int
    total_chunks: int
    is_final_chunk: bool
    crc32c: int
    chunk_data: bytes
    def __init__(self, chunk_index: _Optional[int] = ..., total_chunks: _Optional[int] = ..., is_final_chunk: bool = ..., crc32c: _Optional[int] = ..., chunk_data: _Optional[bytes] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("session", "task_id", "trained_on_round", "attempt_id", "base_digest", "num_examples", "metrics", "manifest")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINED_ON_ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    session: Session
    task_id: str
    trained_on_round: int
    attempt_id: str
    base_digest: str
    num_examples: int
    metrics: _containers.MessageMap[str, Scalar]
    manifest: Manifest
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., task_id: _Optional[str] = ..., trained_on_round: _Optional[int] = ..., attempt_id: _Optional[str] = ..., base_digest: _Optional[str] = ..., num_examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, Scalar]] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class SubmitModelUpdateRequest(_message.Message):
    __slots__ = ("header", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    body: bytes
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., body: _Optional[bytes] = ...) -> None: ...

class ModelUpdateChunk(_message.Message):
    __slots__ = ("chunk_index", "total_chunks", "is_final_chunk", "crc32c", "header", "chunk_data")
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_DATA_FIELD_NUMBER: _ClassVar[int]
    chunk_index: int
    total_chunks: int
    is_final_chunk: bool
    crc32c: int
    header: UpdateHeader
    chunk_data: bytes
    def __init__(self, chunk_index: _Optional[int] = ..., total_chunks: _Optional[int] = ..., is_final_chunk: bool = ..., crc32c: _Optional[int] = ..., header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk_data: _Optional[bytes] = ...) -> None: ...

class SubmitModelUpdateResponse(_message.Message):
    __slots__ = ("received", "outcome", "message", "current_round", "directive")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[SubmitModelUpdateResponse.Outcome]
        ACCEPTED: _ClassVar[SubmitModelUpdateResponse.Outcome]
        DUPLICATE: _ClassVar[SubmitModelUpdateResponse.Outcome]
    OUTCOME_UNSPECIFIED: SubmitModelUpdateResponse.Outcome
    ACCEPTED: SubmitModelUpdateResponse.Outcome
    DUPLICATE: SubmitModelUpdateResponse.Outcome
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    received: bool
    outcome: SubmitModelUpdateResponse.Outcome
    message: str
    current_round: int
    directive: Directive
    def __init__(self, received: bool = ..., outcome: _Optional[_Union[SubmitModelUpdateResponse.Outcome, str]] = ..., message: _Optional[str] = ..., current_round: _Optional[int] = ..., directive: _Optional[_Union[Directive, str]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session", "status", "current_step", "total_steps", "current_round", "task_id", "message")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: Session
    status: ClientState
    current_step: int
    total_steps: int
    current_round: int
    task_id: str
    message: str
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., status: _Optional[_Union[ClientState, str]] = ..., current_step: _Optional[int] = ..., total_steps: _Optional[int] = ..., current_round: _Optional[int] = ..., task_id: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("acknowledged", "should_stop", "message", "directive", "heartbeat_interval", "retry_spread")
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    SHOULD_STOP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    RETRY_SPREAD_FIELD_NUMBER: _ClassVar[int]
    acknowledged: bool
    should_stop: bool
    message: str
    directive: Directive
    heartbeat_interval: float
    retry_spread: float
    def __init__(self, acknowledged: bool = ..., should_stop: bool = ..., message: _Optional[str] = ..., directive: _Optional[_Union[Directive, str]] = ..., heartbeat_interval: _Optional[float] = ..., retry_spread: _Optional[float] = ...) -> None: ...

class GetServerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClientStatus(_message.Message):
    __slots__ = ("client_id", "status", "current_round", "current_step", "total_steps", "silent_seconds", "bytes_sent", "bytes_received", "tensor_bytes_sent", "tensor_bytes_received")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    CURRENT_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    status: ClientState
    current_round: int
    current_step: int
    total_steps: int
    silent_seconds: float
    bytes_sent: int
    bytes_received: int
    tensor_bytes_sent: int
    tensor_bytes_received: int
    def __init__(self, client_id: _Optional[str] = ..., status: _Optional[_Union[ClientState, str]] = ..., current_round: _Optional[int] = ..., current_step: _Optional[int] = ..., total_steps: _Optional[int] = ..., silent_seconds: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., tensor_bytes_sent: _Optional[int] = ..., tensor_bytes_received: _Optional[int] = ...) -> None: ...

class GetServerStatusResponse(_message.Message):
    __slots__ = ("run_id", "phase", "round", "committed", "num_rounds", "accepted", "target", "codec", "elapsed_seconds", "clients", "metrics", "bytes_sent", "bytes_received", "encodings", "tensor_bytes_sent", "tensor_bytes_received", "refused")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    phase: str
    round: int
    committed: int
    num_rounds: int
    accepted: int
    target: int
    codec: str
    elapsed_seconds: float
    clients: _containers.RepeatedCompositeFieldContainer[ClientStatus]
    metrics: _containers.ScalarMap[str, float]
    bytes_sent: int
    bytes_received: int
    encodings: int
    tensor_bytes_sent: int
    tensor_bytes_received: int
    refused: _containers.ScalarMap[str, int]
    def __init__(self, run_id: _Optional[str] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., committed: _Optional[int] = ..., num_rounds: _Optional[int] = ..., accepted: _Optional[int] = ..., target: _Optional[int] = ..., codec: _Optional[str] = ..., elapsed_seconds: _Optional[float] = ..., clients: _Optional[_Iterable[_Union[ClientStatus, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., encodings: _Optional[int] = ..., tensor_bytes_sent: _Optional[int] = ..., tensor_bytes_received: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetAuditLogRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class GetAuditLogResponse(_message.Message):
    __slots__ = ("lines", "total")
    LINES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    lines: bytes
    total: int
    def __init__(self, lines: _Optional[bytes] = ..., total: _Optional[int] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("act", "client_id", "reason", "for_good")
    class Act(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACT_UNSPECIFIED: _ClassVar[ControlRequest.Act]
        STOP: _ClassVar[ControlRequest.Act]
        PAUSE: _ClassVar[ControlRequest.Act]
        RESUME: _ClassVar[ControlRequest.Act]
        EVICT: _ClassVar[ControlRequest.Act]
    ACT_UNSPECIFIED: ControlRequest.Act
    STOP: ControlRequest.Act
    PAUSE: ControlRequest.Act
    RESUME: ControlRequest.Act
    EVICT: ControlRequest.Act
    ACT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FOR_GOOD_FIELD_NUMBER: _ClassVar[int]
    act: ControlRequest.Act
    client_id: str
    reason: str
    for_good: bool
    def __init__(self, act: _Optional[_Union[ControlRequest.Act, str]] = ..., client_id: _Optional[str] = ..., reason: _Optional[str] = ..., for_good: bool = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("data", "dims", "dtype")
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dims: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, data: _Optional[bytes] = ..., dims: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class ModelParameters(_message.Message):
    __slots__ = ("tensors", "num_examples_trained", "order")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_TRAINED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.MessageMap[str, Tensor]
    num_examples_trained: int
    order: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tensors: _Optional[_Mapping[str, Tensor]] = ..., num_examples_trained: _Optional[int] = ..., order: _Optional[_Iterable[str]] = ...) -> None: ...
