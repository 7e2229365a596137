"""The config: parses and checks a file, and returns a `Config` or every error at once."""

from fastgate.config.files import Changes
from fastgate.config.load import (
    InvalidConfig,
    Source,
    check,
    decode,
    encode,
    load,
    load_admin,
    load_source,
    read_source,
)
from fastgate.config.root import TRUSTED_UNIX, Config, PluginUse, RouteConfig, decode_route
from fastgate.config.server import (
    AccessLogConfig,
    Address,
    AdminConfig,
    CertificateConfig,
    ListenerConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
    parse_address,
)
from fastgate.settings import ConfigError

__all__ = [
    "TRUSTED_UNIX",
    "AccessLogConfig",
    "Address",
    "AdminConfig",
    "CertificateConfig",
    "Changes",
    "Config",
    "ConfigError",
    "InvalidConfig",
    "ListenerConfig",
    "PluginUse",
    "RouteConfig",
    "ServerConfig",
    "Source",
    "StoreConfig",
    "TlsConfig",
    "check",
    "decode",
    "decode_route",
    "encode",
    "load",
    "load_admin",
    "load_source",
    "parse_address",
    "read_source",
]
