//! What somebody asks for, in the body of a request.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::answer::Refused;

/// A JSON object with what is wished for. A list is refused: serde would take its items for the
/// fields, in the order of their declaration.
pub struct Wish<T>(pub T);

impl<T, S> FromRequest<S> for Wish<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let refused = |error: JsonRejection| Refused(error.status(), error.body_text());
        let Json(body) = Json::<Value>::from_request(request, state)
            .await
            .map_err(refused)?;
        let wrong = |why| Refused(StatusCode::UNPROCESSABLE_ENTITY, why);
        if !body.is_object() {
            let why = "the body is no JSON object; GET /v1/openapi.json tells what can be asked";
            return Err(wrong(why.to_owned()));
        }
        serde_json::from_value(body)
            .map(Self)
            .map_err(|error| wrong(format!("the body is not what is asked for: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Size {
        cpus: Option<u32>,
    }

    async fn taken(body: &str) -> Result<Size, (StatusCode, String)> {
        let request = Request::post("/")
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let wish = Wish::from_request(request, &()).await;
        wish.map(|Wish(size)| size)
            .map_err(|Refused(status, why)| (status, why))
    }

    #[tokio::test]
    async fn an_object_is_taken_and_nothing_else() {
        assert_eq!(taken("{\"cpus\": 2}").await, Ok(Size { cpus: Some(2) }));
        for (body, part) in [
            ("[2]", "no JSON object"),
            ("null", "no JSON object"),
            ("{\"cpu\": 2}", "unknown field `cpu`"),
            ("{\"cpus\": -1}", "invalid value"),
        ] {
            let (status, why) = taken(body).await.unwrap_err();
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
            assert!(why.contains(part), "{body}: {why}");
        }
        let (status, _) = taken("{").await.unwrap_err();
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
}
