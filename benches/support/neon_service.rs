//! The place of Neon: its API, the hosts of its computes, and the certificates that are trusted there. For benchmarks
//! and checks that run on Neon itself, or on an emulator in its place.

use std::{env, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use reqwest::redirect;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tenantry::{
    BoxError, Neon, Plan, Resolve, RouterBuilder, Secret,
    emulator::Emulator,
    tokio_postgres::{
        Client, Config, Error as PostgresError,
        config::{SslMode, SslNegotiation},
        tls::MakeTlsConnect,
    },
};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The URL of Neon's API, unless `NEON_API_URL` says otherwise.
const API_URL: &str = "https://console.neon.tech/api/v2";
/// Port of every compute.
const PORT: u16 = 5432;
/// Longest wait for one answer of the API.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Neon, or an emulator in its place.
#[derive(Clone)]
pub(crate) struct NeonService {
    pub(crate) neon: Neon,
    pub(crate) api_url: String,
    api_key: Secret,
    pub(crate) org_id: Option<String>,
    region: Option<String>,
    /// PEM of the roots that are trusted besides Mozilla's.
    roots: Option<Vec<u8>>,
    /// The address behind all hosts, where no name server knows them.
    proxy: Option<SocketAddr>,
}

#[allow(dead_code, reason = "a benchmark does not ask for everything")]
impl NeonService {
    /// By the variables of [`TenantRouter::from_env`](tenantry::TenantRouter::from_env) (`NEON_API_KEY`, `NEON_ORG_ID`,
    /// `NEON_REGION`) and three more that put something else in Neon's place: `NEON_API_URL`, `NEON_PROXY` (the address
    /// of all computes' hosts) and `NEON_ROOT_CERTIFICATES` (a PEM file, trusted besides Mozilla's roots).
    pub(crate) fn from_env() -> Result<Self, BoxError> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let key =
            variable("NEON_API_KEY").ok_or("NEON_API_KEY is not set: no key of Neon's API")?;
        let proxy = variable("NEON_PROXY").map(|it| it.parse()).transpose();
        let roots = variable("NEON_ROOT_CERTIFICATES").map(PathBuf::from);
        let roots = roots.map(std::fs::read).transpose();
        let service = Self {
            api_url: variable("NEON_API_URL").unwrap_or_else(|| API_URL.to_owned()),
            org_id: variable("NEON_ORG_ID"),
            region: variable("NEON_REGION"),
            roots: roots.map_err(|err| format!("NEON_ROOT_CERTIFICATES: {err}"))?,
            proxy: proxy.map_err(|_| "NEON_PROXY is not an address with a port")?,
            neon: Neon::builder(key.clone()).build()?,
            api_key: key.into(),
        };
        let mut neon = Neon::builder(service.api_key.clone()).base_url(&service.api_url);
        if let Some(org_id) = &service.org_id {
            neon = neon.org_id(org_id);
        }
        for root in service.extra_roots()? {
            neon = neon.root_certificate(root);
        }
        Ok(Self {
            neon: neon.build()?,
            ..service
        })
    }

    /// An emulator.
    pub(crate) fn of(emulator: &Emulator) -> Result<Self, BoxError> {
        let neon = Neon::builder(emulator.api_key()).base_url(emulator.api_url());
        Ok(Self {
            neon: neon.requests_per_minute(100_000).build()?,
            api_url: emulator.api_url(),
            api_key: emulator.api_key(),
            org_id: None,
            region: None,
            roots: Some(std::fs::read(emulator.root_certificate_file())?),
            proxy: Some(emulator.proxy_address()),
        })
    }

    /// The same, with all hosts at another address.
    pub(crate) fn behind(&self, proxy: Option<SocketAddr>) -> Self {
        Self {
            proxy,
            ..self.clone()
        }
    }

    /// The plan of a new project: the smallest compute, so that its cost is known.
    pub(crate) fn plan(&self) -> Plan {
        let plan = Plan::new().compute_units(0.25, 0.25);
        match &self.region {
            Some(region) => plan.region(region),
            None => plan,
        }
    }

    pub(crate) fn key(&self) -> &str {
        self.api_key.expose()
    }

    /// PEM of the roots that are trusted besides Mozilla's.
    pub(crate) fn roots(&self) -> Option<&[u8]> {
        self.roots.as_deref()
    }

    /// The address behind all hosts; `None` where a name server knows them.
    pub(crate) const fn proxy(&self) -> Option<SocketAddr> {
        self.proxy
    }

    fn extra_roots(&self) -> Result<Vec<CertificateDer<'static>>, BoxError> {
        let pem = self.roots.as_deref().unwrap_or_default();
        let all = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
        all.map_err(|err| format!("NEON_ROOT_CERTIFICATES is not PEM: {err}").into())
    }

    fn client_config(&self) -> Result<ClientConfig, BoxError> {
        let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        for root in self.extra_roots()? {
            roots.add(root)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions()?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    /// A client of the API that shows every answer as it is.
    pub(crate) fn http(&self) -> Result<reqwest::Client, BoxError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.client_config()?)
            .timeout(REQUEST_TIMEOUT)
            .redirect(redirect::Policy::none());
        Ok(client.build()?)
    }

    /// TLS for a client of the computes.
    pub(crate) fn tls(&self) -> Result<MakeRustlsConnect, BoxError> {
        let mut config = self.client_config()?;
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }

    /// `builder`, pointed here.
    pub(crate) fn router(&self, mut builder: RouterBuilder) -> Result<RouterBuilder, BoxError> {
        for root in self.extra_roots()? {
            builder = builder.root_certificate(root);
        }
        Ok(match self.proxy {
            Some(proxy) => builder.resolve(FixedResolver(proxy)),
            None => builder,
        })
    }

    /// A session, and the task that ends with it.
    pub(crate) async fn connect(
        &self,
        host: &str,
        mut config: Config,
    ) -> Result<Session, BoxError> {
        let stream = match self.proxy {
            Some(proxy) => TcpStream::connect(proxy).await?,
            None => TcpStream::connect((host, PORT)).await?,
        };
        stream.set_nodelay(true)?;
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut self.tls()?, host)?;
        let (client, connection) = config.connect_raw(stream, tls).await?;
        Ok((client, tokio::spawn(connection)))
    }
}

/// A client, and what its connection ends in.
pub(crate) type Session = (Client, JoinHandle<Result<(), PostgresError>>);

/// All hosts at one address.
#[derive(Clone, Copy, Debug)]
struct FixedResolver(SocketAddr);

impl Resolve for FixedResolver {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }
}
