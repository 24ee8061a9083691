//! How a command fails: with what, where and what to do, and with an exit code.

use std::fmt::{self, Display};
use std::process::ExitCode;

/// Why a command ended without its result.
#[derive(Debug)]
pub enum Failure {
    /// The work failed: exit code 1.
    Work(String),
    /// What was asked for, or given as input, cannot be used: exit code 2.
    Usage(String),
}

impl Failure {
    /// The work failed.
    pub fn work(reason: impl Display) -> Self {
        Self::Work(reason.to_string())
    }

    /// The input or the command line cannot be used.
    pub fn usage(reason: impl Display) -> Self {
        Self::Usage(reason.to_string())
    }

    /// The code to leave with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Work(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(reason) | Self::Usage(reason) => f.write_str(reason),
        }
    }
}
