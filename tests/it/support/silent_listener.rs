//! An address that takes no connection and refuses none.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// A handshake on this machine takes far less, unless the listener drops it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// A listener whose queue is full and that accepts nothing, so that the kernel drops every further handshake.
pub(crate) struct SilentListener {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl SilentListener {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(taken) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            queued.push(taken.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}
