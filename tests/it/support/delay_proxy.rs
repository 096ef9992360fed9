//! A network that brings a request to the API late, also when nobody waits for the answer any more.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::LONG;

/// The beginning of the request for a new project.
const CREATION: &[u8] = b"POST /api/v2/projects ";

/// The way to an API. Holds up the first creation; all else passes.
pub(crate) struct DelayProxy {
    address: SocketAddr,
    hold: Arc<Hold>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Hold {
    /// `true` once a creation has come.
    has_arrived: AtomicBool,
    arrived: Notify,
    released: Notify,
}

impl DelayProxy {
    /// The way to `api`, an URL of this machine.
    pub(crate) async fn to(api: &str) -> Self {
        let target = target(api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hold = Arc::<Hold>::default();
        let passing = Arc::clone(&hold);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, Arc::clone(&passing)));
            }
        });
        Self {
            address,
            hold,
            accepting,
        }
    }

    /// `api`, this way.
    pub(crate) fn url(&self, api: &str) -> String {
        api.replace(&target(api).to_string(), &self.address.to_string())
    }

    /// Waits until a creation is held up.
    pub(crate) async fn creation_arrived(&self) {
        let arrived = timeout(LONG, self.hold.arrived.notified()).await;
        arrived.expect("no creation was sent");
    }

    /// Lets it pass.
    pub(crate) fn release(&self) {
        self.hold.released.notify_one();
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn target(api: &str) -> SocketAddr {
    let host = api.split('/').nth(2).expect("an URL");
    host.parse().expect("an address")
}

/// Passes on what a client sends. The server is not told when the client leaves, or it would drop what it has begun.
async fn pass(client: TcpStream, target: SocketAddr, hold: Arc<Hold>) {
    let (mut from_client, mut to_client) = client.into_split();
    let server = TcpStream::connect(target).await.unwrap();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async { drop(copy(&mut from_server, &mut to_client).await) };
    let requests = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            if bytes.starts_with(CREATION) && hold.is_first() {
                hold.arrived.notify_one();
                hold.released.notified().await;
            }
            if to_server.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await; // until the server has answered
    };
    tokio::select! {
        () = answers => {}
        () = requests => {}
    }
}

impl Hold {
    fn is_first(&self) -> bool {
        !self.has_arrived.swap(true, Relaxed)
    }
}
