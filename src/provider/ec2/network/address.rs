//! Which address of this machine the rest of the internet sees.
//!
//! Owns one small HTTP request to a service of AWS that answers with the address it was asked from. No TLS: whoever can
//! answer in its place can open port 22 of the builders to one address, where sshd still wants the broker's key.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Environment variable that names another service of the same kind.
pub const ADDRESS_URL_VARIABLE: &str = "NIX_BROKER_ADDRESS_URL";
/// The service that is asked otherwise.
pub const ADDRESS_URL: &str = "http://checkip.amazonaws.com/";

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The answer is some 200 bytes with its headers; more is none.
const MAX_ANSWER: u64 = 4096;

/// Why the address is not known.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not the URL of anything that can be asked.
    #[error("`{0}` cannot be asked for this machine's address: it must look like `{ADDRESS_URL}`")]
    Url(String),
    /// Nobody there, or not in time.
    #[error("cannot ask `{url}` for this machine's address; `--address` says it")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// Why not.
        source: std::io::Error,
    },
    /// An answer that is no address.
    #[error("`{url}` answers {what} instead of this machine's address; `--address` says it")]
    Nonsense {
        /// Who was asked.
        url: String,
        /// What came.
        what: String,
    },
    /// An address that cannot be where a packet on the internet comes from.
    #[error(
        "`{url}` answers `{address}`, which is no address on the internet ({kind}); `--address` says from where \
         builders are reached"
    )]
    NotPublic {
        /// Who was asked.
        url: String,
        /// What came.
        address: Ipv4Addr,
        /// What it is.
        kind: &'static str,
    },
}

/// The address from which this machine reaches the internet.
pub async fn public_address() -> Result<Ipv4Addr, AddressError> {
    let url = std::env::var(ADDRESS_URL_VARIABLE).ok().filter(|url| !url.is_empty());
    ask(url.as_deref().unwrap_or(ADDRESS_URL)).await
}

/// The same, of this service.
pub(super) async fn ask(url: &str) -> Result<Ipv4Addr, AddressError> {
    let (authority, host, path) = parts(url).ok_or_else(|| AddressError::Url(url.to_owned()))?;
    let exchange = async {
        let mut stream = TcpStream::connect(&authority).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nix-broker\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        read_answer(stream).await
    };
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
    let answer = timeout(TIMEOUT, exchange).await.map_err(late).and_then(|result| result);
    let answer = answer.map_err(|source| AddressError::Unreachable { url: url.to_owned(), source })?;
    let address = parse(&answer).map_err(|what| AddressError::Nonsense { url: url.to_owned(), what })?;
    match not_public(address) {
        Some(kind) => Err(AddressError::NotPublic { url: url.to_owned(), address, kind }),
        None => Ok(address),
    }
}

/// Up to the end that the answer announces: not every service closes the connection when it is asked to.
async fn read_answer(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut stream = stream.take(MAX_ANSWER);
    let mut answer = Vec::new();
    while !is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
    Ok(answer)
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// Where to connect, the name to ask for, and the path.
fn parts(url: &str) -> Option<(String, &str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_empty() || host.contains('@') || !is_plain(host) || !is_plain(path) {
        return None;
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Some((if has_port { host.to_owned() } else { format!("{host}:80") }, host, path))
}

/// The address in an HTTP answer, or what came instead.
fn parse(answer: &[u8]) -> Result<Ipv4Addr, String> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err("something that is not HTTP".to_owned());
    };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if !head.starts_with("HTTP/1.") || status != "200" {
        let status: String = status.chars().filter(char::is_ascii_digit).take(3).collect();
        return Err(format!("HTTP status {status}"));
    }
    // Anything but the bare text (a chunked body, a page of a captive portal) holds no address on a line of its own.
    let mut addresses = body.lines().filter_map(|line| line.trim().parse().ok());
    let (first, second) = (addresses.next(), addresses.next());
    match (first, second) {
        (Some(address), None) => Ok(address),
        (Some(_), Some(_)) => Err("several addresses".to_owned()),
        (None, _) => {
            let start: String = body.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(format!("`{start}`"))
        }
    }
}

/// What an address is that nobody on the internet can have.
fn not_public(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    if address.is_private() {
        Some("a private network")
    } else if a == 100 && (64..128).contains(&b) {
        Some("carrier-grade NAT")
    } else if address.is_loopback() {
        Some("loopback")
    } else if address.is_link_local() {
        Some("link-local")
    } else if a == 0 || a >= 224 || (a, b, c) == (192, 0, 0) || (a, b & 0xfe) == (198, 18) {
        Some("reserved")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A service that answers one request like this, and what it was asked.
    async fn service(answer: Vec<u8>) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // The other end may have had enough before everything is out.
            drop(stream.write_all(&answer).await);
            String::from_utf8(request).unwrap()
        });
        (url, served)
    }

    async fn answer(body: &str) -> Result<Ipv4Addr, AddressError> {
        let (url, _served) = service(format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes()).await;
        ask(&url).await
    }

    #[tokio::test]
    async fn the_address_is_asked_for_in_plain_http() {
        let (url, served) =
            service(b"HTTP/1.1 200 \r\nContent-Length: 13\r\n\r\n198.51.100.7\n".to_vec()).await;
        assert_eq!(ask(&url).await.unwrap(), Ipv4Addr::new(198, 51, 100, 7));
        let request = served.await.unwrap();
        let host = url.trim_start_matches("http://").trim_end_matches('/');
        assert!(request.starts_with("GET / HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\r\nHost: {host}\r\n")), "{request}");
    }

    #[tokio::test]
    async fn an_address_that_nobody_on_the_internet_has_is_refused() {
        for (address, kind) in [
            ("10.1.2.3", "private"),
            ("192.168.178.20", "private"),
            ("172.16.0.1", "private"),
            ("100.64.3.4", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("0.0.0.0", "reserved"),
            ("255.255.255.255", "reserved"),
            ("224.0.0.1", "reserved"),
            ("198.19.0.1", "reserved"),
        ] {
            let error = answer(address).await.unwrap_err().to_string();
            assert!(
                error.contains(kind) && error.contains(address) && error.contains("--address"),
                "{error}"
            );
        }
        for address in ["100.63.0.1", "100.128.0.1", "172.32.0.1", "8.8.8.8", "198.51.100.1"] {
            assert_eq!(answer(address).await.unwrap().to_string(), address);
        }
    }

    #[tokio::test]
    async fn garbage_is_refused_with_its_beginning() {
        for (body, words) in [
            ("<html><body>Log in to HotelNet</body></html>", "`<html><body>Log in"),
            ("", "``"),
            ("1.2.3", "`1.2.3`"),
            ("2001:db8::1", "`2001:db8::1`"),
            ("1.2.3.4\n5.6.7.8", "several"),
        ] {
            let error = answer(body).await.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("--address"), "{body}: {error}");
        }
        for (whole, words) in [
            ("HTTP/1.1 503 Busy\r\n\r\n1.2.3.4", "HTTP status 503"),
            ("HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", "HTTP status 302"),
            ("1.2.3.4\n", "not HTTP"),
            ("SSH-2.0-x\r\n\r\n1.2.3.4", "HTTP status"),
        ] {
            let (url, _served) = service(whole.as_bytes().to_vec()).await;
            let error = ask(&url).await.unwrap_err().to_string();
            assert!(error.contains(words), "{whole}: {error}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut_off() {
        let (url, _served) =
            service([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'1'; 1 << 20]].concat()).await;
        assert!(matches!(
            ask(&url).await,
            Err(AddressError::Nonsense { .. } | AddressError::Unreachable { .. })
        ));
    }

    #[tokio::test]
    async fn a_connection_that_stays_open_keeps_nobody_waiting() {
        let (mut service, ours) = tokio::io::duplex(256);
        service.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n8.8.8.8\n").await.unwrap();
        let answer = read_answer(ours).await.unwrap();
        assert_eq!(parse(&answer).unwrap(), Ipv4Addr::new(8, 8, 8, 8));
        drop(service);
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_way_out() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = ask(&format!("http://127.0.0.1:{port}/")).await.unwrap_err();
        assert!(matches!(error, AddressError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("--address"), "{error}");
        for odd in
            ["", "https://example.org/", "ftp://x/", "http://", "http:///x", "http://a b/", "http://a@b/"]
        {
            assert!(matches!(ask(odd).await, Err(AddressError::Url(_))), "{odd}");
        }
    }
}
