//! A compute, and how bare code reaches it.

use std::{sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tenantry::{
    BoxError, Neon, Resolve, deadpool_postgres,
    emulator::{Emulator, Witness},
    tokio_postgres::{
        Config,
        config::{SslMode, SslNegotiation},
        tls::MakeTlsConnect,
    },
};
use tokio::{net::TcpStream, time::Instant};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What is asked.
pub(crate) const QUERY: &str = "SELECT 1";

/// The database that everybody asks, and how bare code reaches it.
pub(crate) struct Target {
    host: String,
    password: String,
    address: std::net::SocketAddr,
    tls: MakeRustlsConnect,
}

impl Target {
    /// The endpoint `it`, through its pooler or directly.
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
        let address = emulator.resolver().resolve(&host, 5432).await?.remove(0);
        let mut roots = RootCertStore::empty();
        roots.add(emulator.root_certificate())?;
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let mut tls = tls
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self {
            host,
            password,
            address,
            tls: MakeRustlsConnect::new(tls),
        })
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .user("neondb_owner")
            .password(&self.password)
            .dbname("neondb");
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        config
    }

    /// The least that any code needs: a socket, a login, a query.
    pub(crate) async fn bare(&self) -> Result<Duration, BoxError> {
        let (config, mut tls) = (self.config(), self.tls.clone());
        let start = Instant::now();
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, &self.host)?;
        let (client, connection) = config.connect_raw(stream, tls).await?;
        let task = tokio::spawn(connection);
        client.query_typed(QUERY, &[]).await?;
        let took = start.elapsed();
        drop(client);
        task.await??;
        Ok(took)
    }

    /// A pool as its documentation has it.
    #[allow(dead_code, reason = "not every benchmark compares itself with a pool")]
    pub(crate) fn plain_pool(&self) -> Result<Pool, BoxError> {
        let mut config = self.config();
        config
            .host(&self.host)
            .hostaddr(self.address.ip())
            .port(self.address.port());
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config, self.tls.clone(), recycling);
        Ok(Pool::builder(manager).max_size(4).build()?)
    }
}
