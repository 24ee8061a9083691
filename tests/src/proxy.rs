//! A TCP proxy whose connections die without a sign, as behind a load balancer or a NAT gateway that has forgotten them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The proxy; it ends with the test's runtime.
pub struct Proxy {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    accepted: Arc<AtomicUsize>,
    silence: watch::Sender<()>,
}

impl Proxy {
    /// Starts one before the server at `http://host:port`.
    pub async fn before(server: &str) -> Self {
        let upstream = server.trim_start_matches("http://").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let (silence, silenced) = watch::channel(());
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let server = TcpStream::connect(&upstream).await.expect("the server is there");
                let mut silenced = silenced.clone();
                silenced.mark_unchanged();
                tokio::spawn(relay(client, server, silenced));
            }
        });
        Self { url, accepted, silence }
    }

    /// From now on the connections there are carry nothing; they stay open. New ones work.
    pub fn fall_silent(&self) {
        self.silence.send_replace(());
    }

    /// How many connections were made.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, mut silenced: watch::Receiver<()>) {
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => return,
        _ = silenced.changed() => {}
    }
    // Holds both sockets open.
    std::future::pending::<()>().await;
}
