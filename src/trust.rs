//! Which certificates are trusted, and by which crypto provider they are checked.
//!
//! Certificates are always verified. The provider is named here and never installed for the process: a library that
//! does so breaks the application that wants another.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

use crate::config::InvalidConfig;

/// A root certificate that the application trusts besides. Whether it is one is seen when it is used.
pub(crate) fn certificate(der: impl AsRef<[u8]>) -> CertificateDer<'static> {
    CertificateDer::from(der.as_ref().to_vec())
}

/// Settings of a TLS client that trusts Mozilla's roots and `extra` ones.
pub(crate) fn client_config(
    extra: &[CertificateDer<'static>],
) -> Result<ClientConfig, InvalidConfig> {
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    for certificate in extra {
        roots.add(certificate.clone()).map_err(|err| {
            let message =
                format!("a root certificate cannot be used; it must be DER and not PEM: {err}");
            InvalidConfig::new(message)
        })?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|err| InvalidConfig::new(format!("no TLS version can be used: {err}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
