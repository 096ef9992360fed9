//! The trusted certificates, and the crypto provider that checks them.
//!
//! Certificates are always verified. The provider is named here and never installed for the process: a library that
//! installs one breaks an application that wants another.

use std::{error::Error as StdError, io, iter::successors, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, client::Resumption, crypto::aws_lc_rs,
    pki_types::CertificateDer,
};

use super::config::InvalidConfig;

/// The protocol name that Postgres servers expect when TLS begins without the request for it.
const ALPN: &[u8] = b"postgresql";
/// Hosts whose TLS sessions can be resumed. Each tenant has a host of its own, and rustls remembers only 32 by default.
/// More would be of no use: a server with rustls's defaults, such as Neon's proxy, remembers 256 sessions.
const RESUMABLE_HOSTS: usize = 256;
/// Tickets that rustls remembers of each host. It divides the size of its store by this number.
const TICKETS_PER_HOST: usize = 8;

/// Wraps a further root certificate that the application trusts. An invalid one is detected when it is used.
pub(crate) fn certificate(der: impl AsRef<[u8]>) -> CertificateDer<'static> {
    CertificateDer::from(der.as_ref().to_vec())
}

/// Returns why the other side's certificate was refused and what to do, if that is the cause of `err`.
pub(crate) fn untrusted_reason(err: &(dyn StdError + 'static)) -> Option<&'static str> {
    sources(err).find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(why)) => Some(advice(why)),
        _ => None,
    })
}

const fn advice(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; renew it, and check the clocks on both sides"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; check the clocks on both sides"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host; check the host's name, or have the certificate issued for it"
        }
        CertificateError::Revoked => "it was revoked; replace it",
        _ => {
            "no trusted authority has signed it; if the authority is your own, add its root certificate with \
             `root_certificate`"
        }
    }
}

/// Returns the chain of causes, including those that an `io::Error` carries inside.
pub(crate) fn sources<'a>(
    err: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    successors(Some(err), |err| {
        let err: &'a (dyn StdError + 'static) = *err;
        match err.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inside) => Some(inside),
            None => err.source(),
        }
    })
}

/// Returns the settings of a TLS client of Postgres: trusted roots, the protocol name for direct negotiation, and a
/// store of sessions that is large enough for a fleet.
pub(crate) fn for_postgres(
    extra: &[CertificateDer<'static>],
) -> Result<ClientConfig, InvalidConfig> {
    let mut config = client_config(extra)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(RESUMABLE_HOSTS * TICKETS_PER_HOST);
    Ok(config)
}

/// Returns the settings of a TLS client that trusts Mozilla's roots and the `extra` ones.
pub(crate) fn client_config(
    extra: &[CertificateDer<'static>],
) -> Result<ClientConfig, InvalidConfig> {
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    for certificate in extra {
        roots.add(certificate.clone()).map_err(|err| {
            let message =
                format!("a root certificate cannot be used; it must be DER, not PEM: {err}");
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
