//! What the environment sets: read once, handed on as a value.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct SettingError {
    /// The variable.
    pub name: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The variables of a process. An empty one counts as not set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    variables: BTreeMap<String, String>,
}

impl Settings {
    /// Those of this process.
    #[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
    pub fn from_env() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(text).collect()
    }

    /// The same with another value of one variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of a variable, or `default`.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).unwrap_or(default)
    }

    /// The value of a variable without which the process cannot work; `what` says what it is.
    pub fn required(&self, name: &str, what: &str) -> Result<&str, SettingError> {
        self.get(name).ok_or_else(|| fault(name, format!("not set; give {what}")))
    }

    /// A value in words or numbers, or `default`.
    pub fn parsed<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> Result<T, SettingError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.parse().map_err(|error| fault(name, format!("`{value}`: {error}")))
    }

    /// A number of a range, or `default`.
    pub fn within(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, SettingError> {
        let value = self.parsed(name, default)?;
        if range.contains(&value) {
            return Ok(value);
        }
        Err(fault(name, format!("{value}: give {} to {}", range.start(), range.end())))
    }

    /// `on` or `off`, or `default`.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, SettingError> {
        match self.get(name) {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(fault(name, format!("`{other}`: give on or off"))),
        }
    }

    /// Milliseconds, or `default`.
    pub fn millis(&self, name: &str, default: Duration) -> Result<Duration, SettingError> {
        let millis = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
        self.parsed(name, millis).map(Duration::from_millis)
    }

    /// `projects/<GOOGLE_CLOUD_PROJECT>/topics/<name>`, where the name is what `variable` says, or `default`; a full
    /// name is taken as it is.
    pub fn topic(&self, variable: &str, default: &str) -> Result<String, SettingError> {
        let name = self.text(variable, default);
        if name.starts_with("projects/") {
            return Ok(name.to_string());
        }
        Ok(format!("projects/{}/topics/{name}", self.project()?))
    }

    /// The project of Google Cloud.
    pub fn project(&self) -> Result<&str, SettingError> {
        self.required("GOOGLE_CLOUD_PROJECT", "the id of the Google Cloud project")
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self { variables: variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }
}

/// A fault of the variable `name`.
pub fn fault(name: &str, reason: impl Display) -> SettingError {
    SettingError { name: name.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        let settings = Settings::from_iter([("PORT", "eighty"), ("EMPTY", "")]);
        let error = settings.parsed("PORT", 8080_u16).unwrap_err();
        assert_eq!(error.to_string(), "PORT: `eighty`: invalid digit found in string");
        assert_eq!(settings.parsed("EMPTY", 8080_u16), Ok(8080));
        assert_eq!(
            settings.topic("RAW_TOPIC", "clickstream-raw-topic").unwrap_err().to_string(),
            "GOOGLE_CLOUD_PROJECT: not set; give the id of the Google Cloud project"
        );
    }

    #[test]
    fn a_topic_is_of_the_project_unless_it_is_named_whole() {
        let settings = Settings::from_iter([("GOOGLE_CLOUD_PROJECT", "p"), ("ENRICHED_TOPIC", "projects/q/topics/t")]);
        assert_eq!(settings.topic("RAW_TOPIC", "raw").unwrap(), "projects/p/topics/raw");
        assert_eq!(settings.topic("ENRICHED_TOPIC", "x").unwrap(), "projects/q/topics/t");
    }
}
