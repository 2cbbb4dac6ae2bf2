//! EC2 without a network: requests go to a function in this process.
//!
//! Owns the seam at which tests put their own EC2 under simulated time, where a socket would be a wait that no clock
//! knows of. Everything above it (signing, encoding, time limits, repeats) is what runs against the real one.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use aws_sdk_ec2::config::RuntimeComponents;
use aws_sdk_ec2::config::http::{HttpRequest, HttpResponse};
use aws_sdk_ec2::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::http::StatusCode;

/// The other end of a wire.
pub trait Wire: Send + Sync + fmt::Debug {
    /// Answers a request, or loses the connection.
    fn exchange(&self, request: WireRequest) -> WireFuture;
}

/// What comes of a request.
pub type WireFuture = Pin<Box<dyn Future<Output = Result<WireResponse, WireLost>> + Send>>;

/// A request to EC2, or to EBS.
#[derive(Clone)]
pub struct WireRequest {
    /// Method and path: `POST /` to EC2.
    pub target: String,
    /// `Authorization` as it was sent: names the region and who asks.
    pub authorization: String,
    /// All of them, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The form, or a block.
    pub body: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct WireResponse {
    /// HTTP status.
    pub status: u16,
    /// The document.
    pub body: Vec<u8>,
}

/// Nothing came back.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum WireLost {
    /// Nobody is there.
    #[error("the connection is refused")]
    Refused,
    /// The connection broke after the request had gone out.
    #[error("the connection is reset")]
    Reset,
}

impl fmt::Debug for WireRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireRequest")
            .field("target", &self.target)
            .field("body", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub(super) struct WireClient(pub(super) Arc<dyn Wire>);

impl HttpClient for WireClient {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for WireClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let authorization = request.headers().get("authorization").unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default().to_vec();
        let headers = request.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let (_, path) = request.uri().split_once("://").unwrap_or(("", request.uri()));
        let path = path.find('/').map_or("/", |at| &path[at..]);
        let target = format!("{} {path}", request.method());
        let answer = self.0.exchange(WireRequest { target, authorization, headers, body });
        HttpConnectorFuture::new(async move {
            let response = answer.await.map_err(|lost| {
                let kind = match lost {
                    WireLost::Refused => std::io::ErrorKind::ConnectionRefused,
                    WireLost::Reset => std::io::ErrorKind::ConnectionReset,
                };
                ConnectorError::io(std::io::Error::new(kind, lost).into())
            })?;
            let status = StatusCode::try_from(response.status)
                .map_err(|error| ConnectorError::other(Box::new(error), None))?;
            Ok(HttpResponse::new(status, response.body.into()))
        })
    }
}
