"""The config: a file in, a checked `Config` or every error at once out."""

from fastgate.config.root import (
    AccessLogConfig,
    AdminConfig,
    CertificateConfig,
    Config,
    ListenerConfig,
    PluginUse,
    RouteConfig,
    ServerConfig,
    TlsConfig,
)
from fastgate.settings import ConfigError

__all__ = [
    "AccessLogConfig",
    "AdminConfig",
    "CertificateConfig",
    "Config",
    "ConfigError",
    "ListenerConfig",
    "PluginUse",
    "RouteConfig",
    "ServerConfig",
    "TlsConfig",
]
