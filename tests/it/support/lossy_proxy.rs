//! A way by TCP to a server that listens on a socket of this machine, which loses connections as a network does.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;
use tenantry::emulator::CatalogServer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use url::Url;

/// The fate of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ConnectionLoss {
    /// It passes all.
    None,
    /// It passes nothing more, and nobody is told.
    Silent,
    /// It is reset as soon as something is sent on it, which does not arrive.
    Reset,
    /// It delivers what is sent on it, and is reset in place of the answer.
    Unanswered,
}

/// The bytes that clients have sent.
type Sent = Arc<Mutex<Vec<u8>>>;

/// Leads to a catalog server.
pub(crate) struct LossyProxy {
    url: String,
    loss: watch::Sender<ConnectionLoss>,
    opened: Arc<AtomicUsize>,
    sent: Sent,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl LossyProxy {
    pub(crate) async fn to(server: &CatalogServer) -> Self {
        let url = Url::parse(&server.url()).unwrap();
        let folder = percent_encoding::percent_decode_str(url.host_str().unwrap());
        let folder = PathBuf::from(folder.decode_utf8().unwrap().into_owned());
        let socket = folder.join(format!(".s.PGSQL.{}", url.port().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let url = format!("postgres://{}@{address}{}", url.username(), url.path());
        let (loss, seen) = watch::channel(ConnectionLoss::None);
        let (opened, tasks) = (Arc::<AtomicUsize>::default(), Arc::default());
        let (all, number): (Arc<Mutex<Vec<JoinHandle<()>>>>, _) = (tasks, Arc::clone(&opened));
        let tasks = Arc::clone(&all);
        let sent = Sent::default();
        let noted = Arc::clone(&sent);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                number.fetch_add(1, Relaxed);
                let mut seen = seen.clone();
                seen.mark_unchanged();
                let passing = pass(client, socket.clone(), seen, Arc::clone(&noted));
                all.lock().unwrap().push(tokio::spawn(passing));
            }
        });
        tasks.lock().unwrap().push(accepting);
        Self {
            url,
            loss,
            opened,
            sent,
            tasks,
        }
    }

    /// The server's URL by this way.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns how many connections were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// Returns the bytes that clients have sent since the last call.
    pub(crate) fn take_sent(&self) -> Vec<u8> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// Says what becomes of the connections that are open. Later ones pass.
    pub(crate) fn lose_open_connections(&self, loss: ConnectionLoss) {
        self.loss.send_replace(loss);
    }
}

impl Drop for LossyProxy {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

/// Passes bytes on until the connection is doomed, and then does what its fate says.
async fn pass(
    client: TcpStream,
    socket: PathBuf,
    mut loss: watch::Receiver<ConnectionLoss>,
    sent: Sent,
) {
    let server = UnixStream::connect(socket).await.unwrap();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let reason = {
        let both = async {
            tokio::join!(
                copy(&mut from_client, &mut to_server, Some(&sent)),
                copy(&mut from_server, &mut to_client, None),
            )
        };
        tokio::select! {
            _ = both => None,
            changed = loss.changed() => changed.ok().map(|()| *loss.borrow()),
        }
    };
    let mut bytes = [0; 4096];
    match reason {
        None | Some(ConnectionLoss::None) => {}
        Some(ConnectionLoss::Silent) => std::future::pending().await,
        Some(ConnectionLoss::Reset) => {
            let _ = from_client.read(&mut bytes).await;
        }
        Some(ConnectionLoss::Unanswered) => {
            tokio::select! {
                () = copy(&mut from_client, &mut to_server, None) => {}
                _ = from_server.read(&mut bytes) => {}
            }
        }
    }
    let client = from_client.reunite(to_client).unwrap();
    let reset = SockRef::from(&client).set_linger(reason.map(|_| Duration::ZERO));
    reset.unwrap();
}

/// Passes bytes on in one direction, until that ends, and keeps them in `sent`.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    sent: Option<&Sent>,
) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if let Some(sent) = sent {
            sent.lock().unwrap().extend_from_slice(&bytes[..read]);
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
