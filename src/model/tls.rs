//! One TLS configuration for every tenant.

use rustls::{ClientConfig, pki_types::CertificateDer};

use super::{config::InvalidConfig, trust};

/// The protocol name that Postgres servers expect when TLS begins without the request for it.
const ALPN: &[u8] = b"postgresql";

/// The TLS settings for Postgres: the trusted roots, and the protocol name for direct negotiation.
pub(crate) fn for_postgres(
    extra: &[CertificateDer<'static>],
) -> Result<ClientConfig, InvalidConfig> {
    let mut config = trust::client_config(extra)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}
