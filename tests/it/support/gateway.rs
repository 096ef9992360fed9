//! A TCP port in front of a server that listens on a Unix socket.

use std::{net::SocketAddr, path::PathBuf};

use tenantry::{
    emulator::CatalogServer,
    tokio_postgres::{Config, config::Host},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
};
use tokio_util::task::AbortOnDropHandle;

/// Passes TCP connections on to a Postgres or a PgBouncer of [`CatalogServer`].
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Gateway {
    /// In front of the server that `url` of a [`CatalogServer`] names.
    pub(crate) async fn to(url: &str) -> Self {
        let config: Config = url.parse().unwrap();
        let socket = folder_of(&config).join(format!(".s.PGSQL.{}", config.get_ports()[0]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let socket = socket.clone();
                tokio::spawn(async move {
                    let mut server = UnixStream::connect(socket).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// The folder of a server's sockets, data and settings.
pub(crate) fn folder(server: &CatalogServer) -> PathBuf {
    folder_of(&server.url().parse().unwrap())
}

fn folder_of(config: &Config) -> PathBuf {
    let Some(Host::Unix(folder)) = config.get_hosts().first() else {
        panic!("no Unix socket: {config:?}");
    };
    folder.clone()
}
