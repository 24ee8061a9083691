//! Topics and subscriptions of a Pub/Sub server, over its REST API.

use serde_json::{Value, json};

/// The project of everything made here.
pub const PROJECT: &str = "contextflow-test";

/// A Pub/Sub server.
pub struct PubSubApi {
    url: String,
    client: reqwest::blocking::Client,
}

/// A push subscription.
pub struct PushTo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its topic.
    pub topic: &'a str,
    /// Where messages are pushed to.
    pub endpoint: String,
    /// First pause before a message is pushed again, in milliseconds.
    pub backoff_millis: u32,
    /// The topic of what was given up, and after how many deliveries.
    pub dead_letter: Option<(&'a str, u32)>,
}

impl PubSubApi {
    /// The server at `url`.
    pub fn at(url: &str) -> Self {
        Self { url: format!("{url}/v1/projects/{PROJECT}"), client: reqwest::blocking::Client::new() }
    }

    /// Makes topics.
    pub fn create_topics(&self, names: &[&str]) {
        for name in names {
            self.put(&format!("topics/{name}"), &json!({}));
        }
    }

    /// Makes a push subscription as the deployment does.
    pub fn create_push(&self, push: &PushTo<'_>) {
        let topic = |name: &str| format!("projects/{PROJECT}/topics/{name}");
        let mut body = json!({
            "topic": topic(push.topic),
            "pushConfig": {"pushEndpoint": push.endpoint},
            "ackDeadlineSeconds": 60,
            "retryPolicy": {
                "minimumBackoff": format!("{:.3}s", f64::from(push.backoff_millis) / 1_000.0),
                "maximumBackoff": "600s",
            },
        });
        if let Some((name, attempts)) = push.dead_letter {
            body["deadLetterPolicy"] = json!({"deadLetterTopic": topic(name), "maxDeliveryAttempts": attempts});
        }
        self.put(&format!("subscriptions/{}", push.name), &body);
    }

    /// Makes a pull subscription, to look at what a topic gets.
    pub fn create_pull(&self, name: &str, topic: &str) {
        let topic = format!("projects/{PROJECT}/topics/{topic}");
        self.put(&format!("subscriptions/{name}"), &json!({"topic": topic}));
    }

    /// Publishes one message.
    pub fn publish(&self, topic: &str, data: &[u8], attributes: &[(&str, &str)]) {
        let attributes: serde_json::Map<_, _> =
            attributes.iter().map(|(key, value)| ((*key).to_string(), json!(value))).collect();
        let data = base64_simd::STANDARD.encode_to_string(data);
        self.post(&format!("topics/{topic}:publish"), &json!({"messages": [{"data": data, "attributes": attributes}]}));
    }

    /// Takes the messages that wait in a pull subscription: data and attributes of each.
    pub fn pull(&self, subscription: &str) -> Vec<(Vec<u8>, Value)> {
        let path = format!("subscriptions/{subscription}");
        let answer = self.post(&format!("{path}:pull"), &json!({"maxMessages": 1000, "returnImmediately": true}));
        let received = answer["receivedMessages"].as_array().cloned().unwrap_or_default();
        let ids: Vec<_> = received.iter().map(|message| message["ackId"].clone()).collect();
        if !ids.is_empty() {
            self.post(&format!("{path}:acknowledge"), &json!({"ackIds": ids}));
        }
        let read = |message: &Value| {
            let data = message["message"]["data"].as_str().unwrap_or_default();
            let data = base64_simd::STANDARD.decode_to_vec(data.as_bytes()).expect("the server sends base64");
            (data, message["message"]["attributes"].clone())
        };
        received.iter().map(read).collect()
    }

    fn put(&self, path: &str, body: &Value) {
        let answer = self.client.put(format!("{}/{path}", self.url)).json(body).send().expect("Pub/Sub answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.text().unwrap_or_default());
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.client.post(format!("{}/{path}", self.url)).json(body).send().expect("Pub/Sub answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.text().unwrap_or_default());
        answer.json().expect("Pub/Sub answers JSON")
    }
}
