//! Workload identity federation from AWS: the role of this process proves itself to Google by a request that only it can
//! have signed. No key file, no metadata server.
//!
//! The protocol is <https://google.aip.dev/auth/4117>: `GetCallerIdentity` is signed for AWS but sent to Google, which
//! passes it on to AWS and takes the answer for the caller's identity. The audience is one of the signed headers, so that
//! the request is worth nothing before another pool.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_credential_types::Credentials as Role;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Client;
use serde::Deserialize;
use serde_json::json;

use super::by_age::{Issued, TokenError, TokenSource};
use super::{answer_of, http_client};
use crate::clock::{Clock, Micros, SECOND};
use crate::decode::time::timestamp;
use crate::settings::{Settings, fault};

const AUDIENCE: &str = "WORKLOAD_IDENTITY_AUDIENCE";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Of one request; two of them are made within the time of a publish.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The exchange of the role for a token.
pub struct Federation {
    audience: String,
    role: Role,
    region: String,
    sts: String,
    /// Where the service account's token is had, if one is to be impersonated.
    impersonation: Option<String>,
    client: Client,
    clock: Clock,
}

impl Federation {
    /// Reads it from the environment; none where no audience is set.
    pub fn read(settings: &Settings, clock: Clock) -> Result<Option<Self>, String> {
        let Some(audience) = settings.get(AUDIENCE) else { return Ok(None) };
        if !(audience.starts_with("//iam.googleapis.com/") && audience.contains("/providers/")) {
            let form = "//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/X";
            return Err(fault(AUDIENCE, format!("`{audience}` is not of the form {form}")).to_string());
        }
        let of_role =
            |name| settings.required(name, "the role's, as AWS Lambda does").map_err(|error| error.to_string());
        let role = Role::new(
            of_role("AWS_ACCESS_KEY_ID")?,
            of_role("AWS_SECRET_ACCESS_KEY")?,
            settings.get("AWS_SESSION_TOKEN").map(str::to_string),
            None,
            "environment",
        );
        let impersonation = settings.get("IMPERSONATE_SERVICE_ACCOUNT").map(|account| {
            let endpoint = settings.text("IAM_CREDENTIALS_ENDPOINT", "https://iamcredentials.googleapis.com");
            format!("{endpoint}/v1/projects/-/serviceAccounts/{account}:generateAccessToken")
        });
        let client = http_client(TIMEOUT)?;
        Ok(Some(Self {
            audience: audience.to_string(),
            role,
            region: of_role("AWS_REGION")?.to_string(),
            sts: format!("{}/v1/token", settings.text("STS_ENDPOINT", "https://sts.googleapis.com")),
            impersonation,
            client,
            clock,
        }))
    }

    /// The signed request as URL-encoded JSON: the subject token of the exchange.
    fn subject_token(&self) -> Result<String, TokenError> {
        let unsigned = |error: &dyn fmt::Display| TokenError::lasting(format!("the role cannot sign: {error}"));
        let host = format!("sts.{}.amazonaws.com", self.region);
        let url = format!("https://{host}/?Action=GetCallerIdentity&Version=2011-06-15");
        let mut headers =
            vec![("host".to_string(), host), ("x-goog-cloud-target-resource".to_string(), self.audience.clone())];

        let identity = self.role.clone().into();
        let now = Duration::from_micros(u64::try_from(self.clock.now()).unwrap_or_default());
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("sts")
            .time(UNIX_EPOCH + now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unsigned(&error))?
            .into();
        let given = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let request = SignableRequest::new("POST", url.as_str(), given, SignableBody::Bytes(&[]));
        let signed = request.and_then(|request| sign(request, &parameters)).map_err(|error| unsigned(&error))?;
        headers.extend(signed.output().headers().map(|(name, value)| (name.to_string(), value.to_string())));

        let headers: Vec<_> = headers.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let request = json!({"url": url, "method": "POST", "headers": headers, "body": ""});
        Ok(utf8_percent_encode(&request.to_string(), NON_ALPHANUMERIC).to_string())
    }

    async fn exchange(&self) -> Result<Federated, TokenError> {
        let subject_token = self.subject_token()?;
        let asked_at = self.clock.now();
        let request = self.client.post(&self.sts).form(&[
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &self.audience),
            ("scope", SCOPE),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token_type", "urn:ietf:params:aws:token-type:aws4_request"),
            ("subject_token", &subject_token),
        ]);
        let answer: Exchanged = answer_of("token exchange", request).await?;
        Ok(Federated { token: answer.access_token, expires_at: asked_at + answer.expires_in.saturating_mul(SECOND) })
    }

    async fn impersonate(&self, url: &str, token: &str) -> Result<Issued, TokenError> {
        let request = self.client.post(url).bearer_auth(token).json(&json!({"scope": [SCOPE]}));
        let answer: Impersonated = answer_of("impersonation", request).await?;
        let no_time = |_| TokenError::lasting("impersonation: the answer tells no expiry".into());
        Issued::bearer(&answer.access_token, timestamp(&answer.expire_time).map_err(no_time)?)
    }
}

#[async_trait]
impl TokenSource for Federation {
    async fn issue(&self) -> Result<Issued, TokenError> {
        let federated = self.exchange().await?;
        match &self.impersonation {
            Some(url) => self.impersonate(url, &federated.token).await,
            None => Issued::bearer(&federated.token, federated.expires_at),
        }
    }
}

/// A token of the pool.
struct Federated {
    token: String,
    expires_at: Micros,
}

#[derive(Deserialize)]
struct Exchanged {
    access_token: String,
    /// Seconds.
    expires_in: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: String,
    /// RFC 3339.
    expire_time: String,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const AUDIENCE_OF_A_POOL: &str =
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/aws/providers/lambda";

    fn settings(changes: &[(&str, &str)]) -> Settings {
        let role = [
            (AUDIENCE, AUDIENCE_OF_A_POOL),
            ("AWS_ACCESS_KEY_ID", "ASIAIOSFODNN7EXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            ("AWS_SESSION_TOKEN", "session/token+=="),
            ("AWS_REGION", "eu-central-1"),
        ];
        role.iter().chain(changes).copied().collect()
    }

    fn refusal(changes: &[(&str, &str)]) -> String {
        Federation::read(&settings(changes), Clock::manual(0)).err().unwrap()
    }

    #[test]
    fn without_an_audience_there_is_no_federation() {
        assert!(Federation::read(&settings(&[(AUDIENCE, "")]), Clock::manual(0)).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(
            refusal(&[("AWS_SECRET_ACCESS_KEY", "")]),
            "AWS_SECRET_ACCESS_KEY: not set; give the role's, as AWS Lambda does"
        );
        assert!(refusal(&[("AWS_REGION", "")]).starts_with("AWS_REGION: not set"));
        assert!(refusal(&[(AUDIENCE, "projects/1")]).starts_with("WORKLOAD_IDENTITY_AUDIENCE: `projects/1` is not of"));
    }

    /// The signature is what botocore 1.44 makes of the same request at the same time.
    #[test]
    fn the_subject_token_is_the_signed_request_with_the_audience_among_its_headers() {
        let clock = Clock::manual(1_792_455_302 * SECOND);
        let federation = Federation::read(&settings(&[]), clock).unwrap().unwrap();
        let token = federation.subject_token().unwrap();
        let json = percent_encoding::percent_decode_str(&token).decode_utf8().unwrap().into_owned();
        let request: Value = serde_json::from_str(&json).unwrap();
        let header = |key: &str| {
            let headers = request["headers"].as_array().unwrap();
            let is_it = |header: &&Value| header["key"].as_str().unwrap().eq_ignore_ascii_case(key);
            let [one] = headers.iter().filter(is_it).collect::<Vec<_>>()[..] else { panic!("one {key}: {headers:?}") };
            one["value"].as_str().unwrap().to_string()
        };
        assert_eq!(request["method"], "POST");
        assert_eq!(
            request["url"],
            "https://sts.eu-central-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15"
        );
        assert_eq!(header("host"), "sts.eu-central-1.amazonaws.com");
        assert_eq!(header("x-goog-cloud-target-resource"), AUDIENCE_OF_A_POOL);
        assert_eq!(header("x-amz-date"), "20261020T001502Z");
        assert_eq!(header("x-amz-security-token"), "session/token+==");
        assert_eq!(
            header("authorization"),
            "AWS4-HMAC-SHA256 Credential=ASIAIOSFODNN7EXAMPLE/20261020/eu-central-1/sts/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-security-token;x-goog-cloud-target-resource, \
             Signature=1a13a2b75626314dc8503d6a096abe88f32894bfc1b6d94da2a31dda54f8751f"
        );
    }
}
