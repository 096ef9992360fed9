//! One TLS configuration for every tenant.
//!
//! Certificates are always verified. The crypto provider is named here and never installed for the process: a library
//! that does so breaks the application that wants another.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

use crate::config::InvalidConfig;

/// The protocol name that Postgres servers expect when TLS begins without the request for it.
const ALPN: &[u8] = b"postgresql";

/// The TLS settings for Postgres: Mozilla's roots, `extra` roots, and the protocol name for direct negotiation.
pub(crate) fn for_postgres(
    extra: &[CertificateDer<'static>],
) -> Result<ClientConfig, InvalidConfig> {
    let mut config = for_https(extra)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The TLS settings for the control plane: Mozilla's roots and `extra` roots.
pub(crate) fn for_https(extra: &[CertificateDer<'static>]) -> Result<ClientConfig, InvalidConfig> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in extra {
        roots.add(certificate.clone()).map_err(|err| {
            InvalidConfig::new(format!("a root certificate cannot be used: {err}"))
        })?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| InvalidConfig::new(format!("no TLS version can be used: {err}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
