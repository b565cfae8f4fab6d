//! Which handler answers which verb and path, and what is answered where none does: as Go's httprouter.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, StatusCode};

use super::answer::{Answer, Refusal};
use super::query::decode;
use super::request::Request;

type Handling = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send>>;
type Handler<S> = Box<dyn Fn(Arc<S>, Request) -> Handling + Send + Sync>;

/// Routes to handlers, which get a state `S` and the request.
pub(in crate::test_server) struct Router<S> {
    routes: Vec<Route<S>>,
}

struct Route<S> {
    method: Method,
    path: &'static str,
    handler: Handler<S>,
}

/// What a request leads to.
enum Way<'a, S> {
    Handler(&'a Handler<S>, String),
    Redirect(String),
    Refused,
}

impl<S> Router<S> {
    pub(in crate::test_server) fn new() -> Self {
        Self { routes: Vec::new() }
    }

    pub(in crate::test_server) fn get<F, Answering>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<S>, Request) -> Answering + Send + Sync + 'static,
        Answering: Future<Output = Result<Answer, Refusal>> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    pub(in crate::test_server) fn post<F, Answering>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<S>, Request) -> Answering + Send + Sync + 'static,
        Answering: Future<Output = Result<Answer, Refusal>> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    /// Adds a route. The last part of `path` may be `:something`, which stands for any one part: see
    /// [`Request::parameter`].
    pub(in crate::test_server) fn route<F, Answering>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<S>, Request) -> Answering + Send + Sync + 'static,
        Answering: Future<Output = Result<Answer, Refusal>> + Send + 'static,
    {
        self.routes.push(Route {
            method,
            path,
            handler: Box::new(move |state, request| Box::pin(handler(state, request))),
        });
        self
    }

    /// Answers a request.
    pub(in crate::test_server) async fn answer(&self, state: &Arc<S>, mut request: Request) -> Answer {
        let Some(path) = decode(request.path(), false) else {
            // Go's server refuses a malformed escape before it looks for a handler.
            return Answer::bare(StatusCode::BAD_REQUEST, "400 Bad Request").closing();
        };
        match self.find(request.method(), &path) {
            Way::Handler(handler, parameter) => {
                request.parameter = parameter;
                let handling = handler(Arc::clone(state), request);
                handling.await.unwrap_or_else(Answer::from)
            }
            Way::Redirect(to) => redirect(&request, &to),
            Way::Refused => self.refuse(request.method(), &path),
        }
    }

    fn find(&self, method: &Method, path: &str) -> Way<'_, S> {
        let routes = || self.routes.iter().filter(|route| route.method == *method);
        for route in routes() {
            if let Some(parameter) = route.matches(path, false) {
                return Way::Handler(&route.handler, parameter);
            }
        }
        if path == "/" {
            return Way::Refused;
        }
        let canonical = clean(path);
        for path in [toggle_slash(path), canonical.clone(), toggle_slash(&canonical)] {
            for route in routes() {
                if let Some(parameter) = route.matches(&path, true) {
                    return Way::Redirect(route.with(&parameter));
                }
            }
        }
        Way::Refused
    }

    fn refuse(&self, method: &Method, path: &str) -> Answer {
        let reached = self.routes.iter().filter(|route| route.matches(path, false).is_some());
        let mut allowed: Vec<_> = reached.map(|route| route.method.as_str()).collect();
        if allowed.is_empty() {
            return Refusal::not_found("NOT_FOUND").into();
        }
        allowed.push("OPTIONS");
        allowed.sort_unstable();
        allowed.dedup();
        let answer = if *method == Method::OPTIONS {
            Answer::done().foreign()
        } else {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED").into()
        };
        match HeaderValue::from_str(&allowed.join(", ")) {
            Ok(allowed) => answer.header(ALLOW, allowed),
            Err(_) => answer,
        }
    }
}

impl<S> Route<S> {
    /// What stands for the open part, which is empty where there is none.
    fn matches(&self, path: &str, any_case: bool) -> Option<String> {
        let same = |left: &str, right: &str| {
            if any_case {
                left.eq_ignore_ascii_case(right)
            } else {
                left == right
            }
        };
        match self.path.split_once(':') {
            None => same(self.path, path).then(String::new),
            Some((fixed, _)) => {
                let (start, rest) = path.split_at_checked(fixed.len())?;
                let fits = same(fixed, start) && !rest.is_empty() && !rest.contains('/');
                fits.then(|| rest.to_owned())
            }
        }
    }

    fn with(&self, parameter: &str) -> String {
        let fixed = self.path.split_once(':').map_or(self.path, |(fixed, _)| fixed);
        format!("{fixed}{parameter}")
    }
}

fn toggle_slash(path: &str) -> String {
    path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned)
}

/// Takes `//`, `/./` and `/../` out.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn redirect(request: &Request, to: &str) -> Answer {
    // Only a parameter can hold anything that needs an escape, and must not become a header of its own.
    let mut location = String::with_capacity(to.len());
    for char in to.chars() {
        match char {
            '%' | '?' | '#' => location.push_str(&format!("%{:02X}", u32::from(char))),
            ' '..='~' => location.push(char),
            other => {
                for byte in other.encode_utf8(&mut [0; 4]).bytes() {
                    location.push_str(&format!("%{byte:02X}"));
                }
            }
        }
    }
    if let Some(query) = request.raw_query() {
        location = format!("{location}?{query}");
    }
    let Ok(value) = HeaderValue::from_str(&location) else {
        return Refusal::not_found("NOT_FOUND").into();
    };
    let answer = if *request.method() == Method::GET {
        let escaped = location.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let escaped = escaped.replace('"', "&#34;").replace('\'', "&#39;");
        let page = format!("<a href=\"{escaped}\">Moved Permanently</a>.\n\n");
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        Answer::bare(StatusCode::MOVED_PERMANENTLY, page).header(CONTENT_TYPE, html)
    } else {
        Answer::bare(StatusCode::TEMPORARY_REDIRECT, "")
    };
    answer.header(LOCATION, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn nothing(_: Arc<()>, _: Request) -> Result<Answer, Refusal> {
        Ok(Answer::done())
    }

    fn way(method: Method, path: &str) -> String {
        let router = Router::new()
            .get("/ping", nothing)
            .get("/config/:opt", nothing)
            .post("/topic/create", nothing);
        match router.find(&method, path) {
            Way::Handler(_, parameter) => format!("found {parameter}"),
            Way::Redirect(to) => to,
            Way::Refused => "refused".to_owned(),
        }
    }

    #[test]
    fn a_path_is_corrected_for_a_verb_that_has_it() {
        assert_eq!(way(Method::GET, "/ping"), "found ");
        assert_eq!(way(Method::GET, "/config/a-b"), "found a-b");
        for path in ["/ping/", "/PING", "/Ping/", "//ping", "/./ping", "/a/../ping"] {
            assert_eq!(way(Method::GET, path), "/ping", "{path}");
        }
        assert_eq!(way(Method::GET, "/CONFIG/Log_Level/"), "/config/Log_Level");
        assert_eq!(way(Method::POST, "/topic/create/"), "/topic/create");
        for path in ["/", "/config", "/config/", "/config/a/b", "/pings", "/topic/create/"] {
            assert_eq!(way(Method::GET, path), "refused", "{path}");
        }
        assert_eq!(way(Method::POST, "/PING"), "refused");
    }
}
