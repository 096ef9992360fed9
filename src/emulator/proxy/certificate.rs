//! The certificate authority of an emulator. Each emulator creates a new one.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use sha2::{Digest, Sha256};

use crate::emulator::EmulatorError;

/// A root certificate, and TLS server settings with a certificate that the root signed.
pub(in crate::emulator) struct Certificates {
    pub(in crate::emulator) root: CertificateDer<'static>,
    pub(in crate::emulator) root_pem: String,
    pub(in crate::emulator) server: Arc<ServerConfig>,
    /// SHA-256 of the server's certificate, for channel binding.
    pub(in crate::emulator) binding: Vec<u8>,
}

impl Certificates {
    /// Creates certificates for `names` and for the loopback addresses.
    pub(in crate::emulator) fn new(
        names: impl IntoIterator<Item = String>,
    ) -> Result<Self, EmulatorError> {
        let failed = |err| EmulatorError::new("cannot make certificates").because(err);
        let authority = authority().map_err(failed)?;
        let (chain, key) = leaf(names, &authority).map_err(failed)?;
        let binding = Sha256::digest(&chain[0]).to_vec();
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        let mut server =
            server.map_err(|err| EmulatorError::new("cannot use the certificates").because(err))?;
        server.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self {
            root: authority.der().clone(),
            root_pem: authority.pem(),
            server: Arc::new(server),
            binding,
        })
    }
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("tenantry emulator root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn leaf(
    names: impl IntoIterator<Item = String>,
    authority: &CertifiedIssuer<'_, KeyPair>,
) -> Result<ChainAndKey, rcgen::Error> {
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names.into_iter().chain(local).collect::<Vec<_>>())?;
    params.distinguished_name = named("tenantry emulator");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // The key is P-256: its certificates are signed with SHA-256, which channel binding needs.
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((
        vec![certificate.der().clone(), authority.der().clone()],
        key,
    ))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
