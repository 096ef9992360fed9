//! A wire that can go dead without a word.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tenantry::Resolve;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Passes connections on, until it is told to freeze those that it has. Later ones pass.
pub(crate) struct Relay {
    address: SocketAddr,
    /// Each freeze raises the number; a connection passes as long as it is the one it began with.
    frozen: watch::Sender<u32>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Relay {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, seen) = watch::channel(0);
        let tasks = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&tasks);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                all.lock()
                    .unwrap()
                    .push(tokio::spawn(pass(client, target, seen.clone())));
            }
        });
        tasks.lock().unwrap().push(accepting);
        Self {
            address,
            frozen,
            tasks,
        }
    }

    /// From now on nothing passes on the connections that are open; nobody is told.
    pub(crate) fn freeze(&self) {
        self.frozen.send_modify(|times| *times += 1);
    }

    /// Leads every host here.
    pub(crate) fn resolver(&self) -> FixedResolver {
        FixedResolver(self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, mut frozen: watch::Receiver<u32>) {
    let mut server = TcpStream::connect(target).await.unwrap();
    frozen.mark_unchanged();
    let ended = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => true,
        _ = frozen.changed() => false,
    };
    if !ended {
        std::future::pending::<()>().await; // both sockets stay open, and silent
    }
}

/// A resolver that knows one address.
pub(crate) struct FixedResolver(pub(crate) SocketAddr);

impl Resolve for FixedResolver {
    async fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }
}
