//! What a client of the HTTP API may do, and the checks that come before any handler.

use super::error::{ApiError, Code};
use crate::config::Http;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The limits of the API, with a name for each.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) answers_bytes_max: u64,
    pub(crate) subscriptions_max: usize,
    pub(crate) client_subscriptions_max: usize,
    pub(crate) subscription_events_max: usize,
    /// Names under which state may be changed: what the Host header may say.
    hosts: Vec<String>,
    origins: Vec<String>,
    /// How pages of this node's own are reached: `http` or `https`.
    scheme: &'static str,
}

impl Limits {
    /// The limits of a configuration, for a server that listens on `address`.
    pub(crate) fn new(config: &Http, address: SocketAddr) -> Self {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let port = address.port();
        let mut hosts: Vec<String> =
            ["127.0.0.1", "localhost", "[::1]"].iter().map(|name| format!("{name}:{port}")).collect();
        hosts.push(address.to_string());
        hosts.extend(config.hosts.iter().map(|host| host.to_ascii_lowercase()));
        Self {
            connections_max: count(config.connections_max),
            body_bytes_max: count(config.body_bytes_max),
            header_timeout: Duration::from_millis(config.header_timeout_ms),
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            answers_bytes_max: config.answers_bytes_max,
            subscriptions_max: count(config.subscriptions_max),
            client_subscriptions_max: count(config.client_subscriptions_max),
            subscription_events_max: count(config.subscription_events_max),
            hosts,
            scheme: config.scheme(),
            origins: config.origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        }
    }

    /// The answer to a body that is longer than it may be.
    pub(super) fn too_large(&self) -> ApiError {
        ApiError::new(Code::TooLarge, format!("bodies have at most {} bytes", self.body_bytes_max))
    }

    /// Says whether a request that changes state comes from where it may.
    ///
    /// A page in somebody's browser can send requests to this machine's own addresses, under a name its author chose
    /// (DNS rebinding) or from its author's origin. Browsers say both; other clients send no Origin.
    fn check_source(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("").to_ascii_lowercase());
        let host = text(header::HOST).unwrap_or_default();
        if !self.hosts.contains(&host) {
            return Err(ApiError::new(Code::Forbidden, format!("state cannot be changed through the host {host:?}"))
                .hint("add it to http.hosts if this node is meant to be reached by it"));
        }
        match text(header::ORIGIN) {
            Some(origin) if origin != format!("{}://{host}", self.scheme) && !self.origins.contains(&origin) => {
                Err(ApiError::new(Code::Forbidden, format!("pages of {origin:?} may not change state"))
                    .hint("add it to http.origins if they may"))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses paths with two readings, bodies in disguise, and changes from where none may come.
pub(crate) async fn guard(
    State(limits): State<Arc<Limits>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // No route has a segment that would need escapes, so an escape only ever hides something.
    let path = request.uri().path();
    if path.contains('%') || path.contains("//") || path.split('/').any(|segment| segment == ".." || segment == ".") {
        return Err(ApiError::new(Code::BadRequest, "paths are plain: no escapes, no empty or dot segments"));
    }
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::new(Code::UnsupportedMedia, "send bodies as they are, without Content-Encoding"));
    }
    // What is said to be too long is refused before any of it is read; what turns out to be is refused while reading.
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits.body_bytes_max as u64) {
        return Err(limits.too_large());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        limits.check_source(request.headers())?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FileName;
    use axum::http::HeaderValue;

    fn limits(tls: bool) -> Limits {
        let tls_certificate = FileName(tls.then(|| "certificate.pem".into()));
        let http =
            Http { hosts: vec!["Node.example".to_owned()], tls_certificate, ..crate::config::Config::default().http };
        Limits::new(&http, SocketAddr::from(([127, 0, 0, 1], 26680)))
    }

    fn allowed(host: &str, origin: Option<&str>) -> bool {
        is_allowed(false, host, origin)
    }

    fn is_allowed(tls: bool, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).expect("plain"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("plain"));
        }
        limits(tls).check_source(&headers).is_ok()
    }

    #[test]
    fn r08_only_known_hosts_and_origins_may_change_state() {
        assert!(allowed("127.0.0.1:26680", None));
        assert!(allowed("localhost:26680", Some("http://localhost:26680")));
        assert!(allowed("node.example", None));
        assert!(!allowed("attacker.example:26680", None), "DNS rebinding");
        assert!(!allowed("localhost:26680", Some("https://attacker.example")), "a page of another origin");
        assert!(!allowed("localhost:26680", Some("null")), "a sandboxed page");
        assert!(!allowed("", None));
        // A page that came over plain HTTP may have been changed on the way.
        assert!(is_allowed(true, "localhost:26680", Some("https://localhost:26680")));
        assert!(!is_allowed(true, "localhost:26680", Some("http://localhost:26680")));
    }
}
