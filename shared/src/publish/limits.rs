//! Pub/Sub's limits of a publish request (<https://cloud.google.com/pubsub/quotas#resource_limits>), which every adapter
//! applies, so that what passes in memory or on the embedded bus passes in the cloud.

use super::Message;

/// Messages of one publish request.
pub const MAX_REQUEST_MESSAGES: usize = 1_000;
/// Data and attributes of one message, and of one publish request together, in bytes.
pub const MAX_REQUEST_BYTES: usize = 10_000_000;
/// Attributes of one message.
pub const MAX_ATTRIBUTES: usize = 100;
/// Bytes of an attribute's key.
pub const MAX_KEY_BYTES: usize = 256;
/// Bytes of an attribute's value.
pub const MAX_VALUE_BYTES: usize = 1_024;
/// What no attribute's key may begin with.
const RESERVED_PREFIX: &str = "goog";

/// Checks one publish request. Like Pub/Sub, it refuses the request as a whole; the error names the limit and the
/// position of the message that breaks it.
pub fn check(messages: &[Message]) -> Result<(), String> {
    if messages.len() > MAX_REQUEST_MESSAGES {
        return Err(format!("{} messages in one request; at most {MAX_REQUEST_MESSAGES} are allowed", messages.len()));
    }
    for (position, message) in messages.iter().enumerate() {
        check_message(message).map_err(|reason| format!("message {position}: {reason}"))?;
    }
    let bytes: usize = messages.iter().map(size).sum();
    if bytes > MAX_REQUEST_BYTES {
        return Err(format!("{bytes} bytes in one request; at most {MAX_REQUEST_BYTES} are allowed"));
    }
    Ok(())
}

/// Splits messages into requests that [`check`] accepts, in their order. A message over the limit stands alone.
pub(super) fn requests(messages: Vec<Message>) -> Vec<Vec<Message>> {
    let mut requests: Vec<Vec<Message>> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        bytes += size(&message);
        match requests.last_mut() {
            Some(request) if request.len() < MAX_REQUEST_MESSAGES && bytes <= MAX_REQUEST_BYTES => {
                request.push(message);
            }
            _ => {
                bytes = size(&message);
                requests.push(vec![message]);
            }
        }
    }
    requests
}

/// Data and attributes of a message in bytes.
fn size(message: &Message) -> usize {
    message.data.len() + message.attributes.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
}

fn check_message(message: &Message) -> Result<(), String> {
    let bytes = size(message);
    if bytes > MAX_REQUEST_BYTES {
        return Err(format!("{bytes} bytes of data and attributes; at most {MAX_REQUEST_BYTES} are allowed"));
    }
    if message.data.is_empty() && message.attributes.is_empty() {
        return Err("it is empty; data or an attribute is required".into());
    }
    if message.attributes.len() > MAX_ATTRIBUTES {
        return Err(format!("{} attributes; at most {MAX_ATTRIBUTES} are allowed", message.attributes.len()));
    }
    for (number, (key, value)) in message.attributes.iter().enumerate() {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(format!(
                "attribute {number} has a key of {} bytes; 1 to {MAX_KEY_BYTES} are allowed",
                key.len()
            ));
        }
        if key.starts_with(RESERVED_PREFIX) {
            return Err(format!(
                "attribute {number} has a key that begins with `{RESERVED_PREFIX}`, which is reserved"
            ));
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(format!(
                "attribute {number} has a value of {} bytes; at most {MAX_VALUE_BYTES} are allowed",
                value.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::{Attributes, MemoryTopic, Publisher as _, publish_each};

    fn data(bytes: usize) -> Message {
        Message { data: vec![b'x'; bytes].into(), ..Message::default() }
    }

    fn attribute(key: &str, value: &str) -> Message {
        Message { data: "{}".into(), attributes: Attributes::from([(key.to_string(), value.to_string())]) }
    }

    fn attributes(count: usize) -> Message {
        let attributes = (0..count).map(|number| (format!("key-{number}"), String::new())).collect();
        Message { data: "{}".into(), attributes }
    }

    #[test]
    fn each_limit_is_accepted_and_one_more_is_refused_by_its_name() {
        let cases = [
            (vec![data(10_000_000)], vec![data(10_000_001)], "10000001 bytes of data and attributes"),
            (vec![data(1); 1_000], vec![data(1); 1_001], "1001 messages in one request"),
            (vec![data(5_000_000); 2], vec![data(5_000_000), data(5_000_001)], "10000001 bytes in one request"),
            (vec![attributes(100)], vec![attributes(101)], "101 attributes; at most 100"),
            (vec![attribute(&"k".repeat(256), "")], vec![attribute(&"k".repeat(257), "")], "a key of 257 bytes"),
            (vec![attribute("k", "")], vec![attribute("", "v")], "a key of 0 bytes"),
            (
                vec![attribute("k", &"v".repeat(1_024))],
                vec![attribute("k", &"v".repeat(1_025))],
                "a value of 1025 bytes",
            ),
            (vec![attribute("good", "v")], vec![attribute("google-id", "v")], "begins with `goog`"),
            (vec![data(1)], vec![data(0)], "it is empty"),
        ];
        for (accepted, refused, reason) in cases {
            assert_eq!(check(&accepted), Ok(()), "{reason}");
            let error = check(&refused).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn attributes_count_as_bytes_and_an_error_names_the_message_not_its_content() {
        let mut large = data(9_999_999);
        large.attributes.insert("secret".into(), "content".into());
        let error = check(&[data(1), large]).unwrap_err();
        assert_eq!(error, "message 1: 10000012 bytes of data and attributes; at most 10000000 are allowed");
    }

    #[test]
    fn requests_are_within_the_limits_and_keep_the_order() {
        let messages: Vec<_> = (0..2_500).map(|number| data(1 + number)).chain([data(11_000_000), data(1)]).collect();
        let requests = requests(messages.clone());
        assert_eq!(requests.concat(), messages);
        let refused: Vec<_> = requests.iter().filter(|request| check(request).is_err()).collect();
        assert_eq!(refused, [&vec![data(11_000_000)]], "only what no request can carry");
        assert_eq!(requests.len(), 5, "{:?}", requests.iter().map(Vec::len).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_topic_in_memory_keeps_to_the_limits_and_more_goes_in_several_requests() {
        let topic = MemoryTopic::default();
        let answers = topic.publish(vec![data(1); 1_001]).await;
        assert!(answers.iter().all(Result::is_err) && topic.messages().is_empty());
        let answers = publish_each(&topic, vec![data(1); 1_001]).await;
        assert_eq!((answers.len(), topic.messages().len()), (1_001, 1_001));
        assert!(answers.iter().all(Result::is_ok));
    }
}
