//! What a client of the HTTP API may do, and the checks that come before any handler.

use super::error::{ApiError, Code};
use super::routes::{JSON, OCTETS, media_type};
use super::server::HEAD_BYTES_MAX;
use crate::config::{HostName, Http, WebOrigin};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Seconds for which a browser may remember what pages of another origin may send.
const PREFLIGHT_SECONDS: &str = "600";

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
    pub(crate) subscription_bytes_max: usize,
    /// Where the server listens: under its own address state may be changed.
    address: SocketAddr,
    /// Names under which it may be changed besides.
    hosts: Vec<HostName>,
    /// Other origins whose pages may use this API.
    origins: Vec<WebOrigin>,
    /// How pages of this node's own are reached: `http` or `https`.
    scheme: &'static str,
}

impl Limits {
    /// The limits of a configuration, for a server that listens on `address`.
    pub(crate) fn new(config: &Http, address: SocketAddr) -> Self {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            connections_max: count(config.connections_max),
            body_bytes_max: count(config.body_bytes_max),
            header_timeout: Duration::from_millis(config.header_timeout_ms),
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            answers_bytes_max: config.answers_bytes_max,
            subscriptions_max: count(config.subscriptions_max),
            client_subscriptions_max: count(config.client_subscriptions_max),
            subscription_events_max: count(config.subscription_events_max),
            subscription_bytes_max: count(config.subscription_bytes_max),
            address,
            hosts: config.hosts.clone(),
            origins: config.origins.clone(),
            scheme: config.scheme(),
        }
    }

    /// The answer to a body that is longer than it may be.
    pub(super) fn too_large(&self, headers: &HeaderMap) -> ApiError {
        let error = ApiError::new(Code::TooLarge, format!("bodies have at most {} bytes", self.body_bytes_max));
        match media_type(headers) == JSON {
            true => error.hint(format!("as {OCTETS} a transaction takes half as many")),
            false => error,
        }
    }

    /// Whether a host is this server's own address, or a name it is meant to be reached by.
    fn knows(&self, host: &HostName) -> bool {
        let port = host.port_of(self.scheme);
        let named = |known: &HostName| known.name() == host.name() && known.port().is_none_or(|known| known == port);
        if self.hosts.iter().any(named) {
            return true;
        }
        // An address is no name, which somebody else could have made lead here: where the node listens on all of its machine's,
        // it is one of these.
        let own = self.address.ip();
        let is_own = |ip: IpAddr| ip == own || ip.is_loopback() || own.is_unspecified();
        port == self.address.port() && (host.name() == "localhost" || host.ip().is_some_and(is_own))
    }

    /// Whether pages of another origin may use this API.
    fn knows_origin(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().ok().and_then(WebOrigin::parse);
        origin.is_some_and(|origin| self.origins.contains(&origin))
    }

    /// Says whether a request that changes state comes from where it may.
    ///
    /// A page in somebody's browser can send requests to this machine's own addresses, under a name its author chose
    /// (DNS rebinding) or from its author's origin. Browsers say both; other clients send no Origin.
    fn check_source(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or(""));
        let named = text(header::HOST).unwrap_or_default();
        let host = HostName::parse(named).filter(|host| self.knows(host)).ok_or_else(|| {
            ApiError::new(Code::Forbidden, format!("state cannot be changed through the host {named:?}"))
                .hint("add it to http.hosts if this node is meant to be reached by it")
        })?;
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let own = WebOrigin::of(self.scheme, &host);
        if origin.to_str().ok().and_then(WebOrigin::parse) == Some(own) || self.knows_origin(origin) {
            return Ok(());
        }
        let message = format!("pages of {:?} may not change state", origin.to_str().unwrap_or(""));
        Err(ApiError::new(Code::Forbidden, message).hint("add it to http.origins if they may"))
    }
}

/// Tells browsers what pages of `http.origins` may do: read what is answered, and send what changes state. Of others nothing is
/// said, so browsers let them do neither.
pub(crate) async fn cross_origin(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    if limits.origins.is_empty() {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).filter(|origin| limits.knows_origin(origin)).cloned();
    // Browsers ask first, without what a request would carry. What it may do is checked when it comes.
    let asks = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && origin.is_some();
    let mut response = match asks {
        false => next.run(request).await,
        true => {
            let may = [
                (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
                (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, last-event-id"),
                (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
            ];
            (StatusCode::NO_CONTENT, may).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    }
    response
}

/// Bytes of a request's head, as it is written.
fn head_bytes(request: &Request) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let first = request.method().as_str().len() + target + "  HTTP/1.1\r\n\r\n".len();
    let headers = request.headers().iter();
    headers.fold(first, |bytes, (name, value)| bytes + name.as_str().len() + value.len() + ": \r\n".len())
}

/// Refuses heads that are too large, paths with two readings, bodies in disguise, and changes from where none may come.
pub(crate) async fn guard(
    State(limits): State<Arc<Limits>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // One that came in a single piece was read whole, however large.
    if head_bytes(&request) > HEAD_BYTES_MAX {
        return Err(ApiError::new(
            Code::HeadTooLarge,
            format!("the head of a request has at most {HEAD_BYTES_MAX} bytes"),
        ));
    }
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
        return Err(limits.too_large(request.headers()));
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

    /// The limits of a server on this address whose configuration has these hosts and origins.
    fn limits(tls: bool, listen: &str, hosts: &[&str], origins: &[&str]) -> Limits {
        let tls_certificate = FileName(tls.then(|| "certificate.pem".into()));
        let hosts = hosts.iter().map(|host| HostName::parse(host).expect("a host")).collect();
        let origins = origins.iter().map(|origin| WebOrigin::parse(origin).expect("an origin")).collect();
        let http = Http { hosts, origins, tls_certificate, ..crate::config::Config::default().http };
        Limits::new(&http, listen.parse().expect("an address"))
    }

    fn allowed(host: &str, origin: Option<&str>) -> bool {
        is_allowed(false, host, origin)
    }

    fn is_allowed(tls: bool, host: &str, origin: Option<&str>) -> bool {
        passes(&limits(tls, "127.0.0.1:26680", &["Node.example"], &[]), host, origin)
    }

    fn passes(limits: &Limits, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).expect("plain"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("plain"));
        }
        limits.check_source(&headers).is_ok()
    }

    /// a port that goes without saying is left out by clients, and a name in `http.hosts` holds for any port.
    #[test]
    fn r08_a_host_is_known_with_and_without_its_port() {
        let web = limits(false, "127.0.0.1:80", &[], &[]);
        assert!(passes(&web, "127.0.0.1", Some("http://127.0.0.1")));
        assert!(passes(&web, "localhost:80", Some("http://localhost")));
        assert!(!passes(&web, "127.0.0.1:8080", None));
        let named = limits(true, "127.0.0.1:443", &["node.example", "other.example:8443"], &[]);
        for host in ["node.example", "NODE.example:443", "node.example:26680", "other.example:8443", "127.0.0.1"] {
            assert!(passes(&named, host, None), "{host}");
        }
        assert!(passes(&named, "node.example:443", Some("https://node.example")));
        for host in ["other.example", "other.example:443", "evil.example", "node.example.evil"] {
            assert!(!passes(&named, host, None), "{host}");
        }
    }

    /// whoever listens on all addresses is reached by any of them; names are known by configuration alone.
    #[test]
    fn r08_all_addresses_of_the_machine_are_the_nodes_own_where_it_listens_on_all() {
        for (listen, every) in [("0.0.0.0:26680", true), ("[::]:26680", true), ("192.0.2.1:26680", false)] {
            let limits = limits(true, listen, &[], &[]);
            assert!(passes(&limits, "192.0.2.1:26680", None), "{listen}");
            assert_eq!(passes(&limits, "192.0.2.7:26680", None), every, "{listen}");
            assert_eq!(passes(&limits, "[2001:db8::1]:26680", None), every, "{listen}");
            assert!(!passes(&limits, "attacker.example:26680", None), "{listen}: DNS rebinding");
            assert!(!passes(&limits, "192.0.2.1:26680", Some("https://192.0.2.9:26680")), "{listen}: another origin");
        }
    }

    #[test]
    fn r08_pages_of_configured_origins_may_change_state() {
        let limits = limits(false, "127.0.0.1:26680", &[], &["https://Wallet.example", "http://localhost:3000"]);
        for (origin, may) in [
            ("https://wallet.example", true),
            ("http://localhost:3000", true),
            ("http://wallet.example", false),
            ("https://wallet.example:8443", false),
            ("https://wallet.example.evil", false),
            ("null", false),
        ] {
            assert_eq!(passes(&limits, "127.0.0.1:26680", Some(origin)), may, "{origin}");
        }
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
