//! A compute, and how bare code reaches it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tenantry::{
    BoxError, Endpoint, Neon, Resolve, deadpool_postgres,
    emulator::{Emulator, Witness},
    tokio_postgres::{
        self, Client, Config,
        config::{SslMode, SslNegotiation},
        tls::MakeTlsConnect,
    },
};
use tokio::{net::TcpStream, task::JoinHandle, time::Instant};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The query.
#[allow(dead_code, reason = "not every benchmark asks a compute")]
pub(crate) const QUERY: &str = "SELECT 1";

const PORT: u16 = 5432;
/// Longest wait of a plain pool for a connection, as Neon's documentation advises.
const POOL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time after which a plain pool closes an idle connection: before Neon suspends its compute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The task of a connection.
pub(crate) type Task = JoinHandle<Result<(), tokio_postgres::Error>>;

/// The database that all clients ask, and how bare code reaches it.
pub(crate) struct Target {
    host: String,
    password: String,
    /// The host's address, if no name server knows it.
    address: Option<SocketAddr>,
    tls: MakeRustlsConnect,
    negotiation: SslNegotiation,
}

impl Target {
    /// The endpoint `it`, through its pooler or directly.
    #[allow(dead_code, reason = "not every benchmark asks for where to connect")]
    pub(crate) async fn of(
        emulator: &Emulator,
        neon: &Neon,
        it: &Witness,
        pooled: bool,
    ) -> Result<Self, BoxError> {
        let uri = neon
            .get_connection_uri(
                &it.project_id,
                &it.endpoint_id,
                "neondb",
                "neondb_owner",
                pooled,
            )
            .await?;
        let config: Config = uri.expose().parse()?;
        let password = String::from_utf8(config.get_password().unwrap_or_default().to_vec())?;
        let host = if pooled {
            it.host.replacen('.', "-pooler.", 1)
        } else {
            it.host.clone()
        };
        Self::at(emulator, &host, &password, tls(emulator)?).await
    }

    /// The database behind `host`.
    pub(crate) async fn at(
        emulator: &Emulator,
        host: &str,
        password: &str,
        tls: MakeRustlsConnect,
    ) -> Result<Self, BoxError> {
        let address = emulator.resolver().resolve(host, PORT).await?.remove(0);
        Ok(Self::new(host, password, Some(address), tls))
    }

    /// The same, with an address for `host` if no name server knows it.
    pub(crate) fn new(
        host: &str,
        password: &str,
        address: Option<SocketAddr>,
        tls: MakeRustlsConnect,
    ) -> Self {
        Self {
            host: host.to_owned(),
            password: password.to_owned(),
            address,
            tls,
            negotiation: SslNegotiation::Direct,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .user("neondb_owner")
            .password(&self.password)
            .dbname("neondb");
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(self.negotiation);
        config
    }

    /// The least that any code needs: a socket, a login, a query.
    #[allow(dead_code, reason = "not every benchmark connects by itself")]
    pub(crate) async fn connect_plain(&self) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let (client, task) = self.open().await?;
        client.query_typed(QUERY, &[]).await?;
        let took = start.elapsed();
        drop(client);
        task.await??;
        Ok(took)
    }

    /// A socket and a login. The task moves the bytes until the client is dropped.
    #[allow(dead_code, reason = "not every benchmark connects by itself")]
    pub(crate) async fn open(&self) -> Result<(Client, Task), BoxError> {
        let (config, mut tls) = (self.config(), self.tls.clone());
        let stream = match self.address {
            Some(address) => TcpStream::connect(address).await?,
            None => TcpStream::connect((&*self.host, PORT)).await?,
        };
        stream.set_nodelay(true)?;
        let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, &self.host)?;
        let (client, connection) = config.connect_raw(stream, tls).await?;
        Ok((client, tokio::spawn(connection)))
    }
}

#[allow(dead_code, reason = "not every benchmark compares itself with others")]
impl Target {
    /// The same, with the request for TLS before it begins.
    pub(crate) fn connect_requesting_tls(self) -> Self {
        Self {
            negotiation: SslNegotiation::Postgres,
            ..self
        }
    }

    /// The same for a router. It begins TLS directly where it knows Neon to be.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let (role, database) = ("neondb_owner", "neondb");
        let password = self.password.as_str();
        let mut endpoint = Endpoint::postgres(&self.host, database, role, password);
        endpoint.is_neon = self.negotiation == SslNegotiation::Direct;
        endpoint
    }

    /// A pool of deadpool-postgres. It has no idle limit, and sees by itself that a connection is closed.
    pub(crate) fn deadpool(&self, size: u16) -> Result<Pool, BoxError> {
        let mut config = self.config();
        config.host(&self.host);
        if let Some(address) = self.address {
            config.hostaddr(address.ip()).port(address.port());
        }
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config, self.tls.clone(), recycling);
        let pool = Pool::builder(manager)
            .max_size(size.into())
            .wait_timeout(Some(POOL_TIMEOUT))
            .create_timeout(Some(POOL_TIMEOUT))
            .runtime(Runtime::Tokio1);
        Ok(pool.build()?)
    }

    /// A pool of sqlx, which trusts `roots` (PEM) besides the public ones. It cannot be told an address for a name, so
    /// the endpoint is named by option where there is one, and it knows TLS only by request.
    pub(crate) fn sqlx(&self, roots: Option<&[u8]>, size: u16) -> Result<PgPool, BoxError> {
        let url = match (self.address, self.host.split_once('.')) {
            (Some(address), Some((name, _))) => {
                format!("postgres://{address}/neondb?options=endpoint%3D{name}")
            }
            _ => format!("postgres://{}/neondb", self.host),
        };
        let options: PgConnectOptions = url.parse()?;
        let mut options = options
            .username("neondb_owner")
            .password(&self.password)
            .ssl_mode(PgSslMode::VerifyFull);
        if let Some(roots) = roots {
            options = options.ssl_root_cert_from_pem(roots.to_vec());
        }
        let pool = PgPoolOptions::new()
            .max_connections(size.into())
            .min_connections(0)
            .acquire_timeout(POOL_TIMEOUT)
            .idle_timeout(IDLE_TIMEOUT);
        Ok(pool.connect_lazy_with(options))
    }
}

/// The settings with which a client of the emulator's proxy begins TLS.
pub(crate) fn tls(emulator: &Emulator) -> Result<MakeRustlsConnect, BoxError> {
    let mut roots = RootCertStore::empty();
    roots.add(emulator.root_certificate())?;
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let mut tls = tls
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(tls))
}
