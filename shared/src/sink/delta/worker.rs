//! One thread for the care of all tables.
//!
//! It bounds what merges take from the pipeline: one core, and the memory of one merge (spread over a pool of threads,
//! every allocator arena would keep that much).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use super::DeltaError;

type Job = Box<dyn FnOnce() + Send>;

/// The thread; it ends with its last owner.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        thread::Builder::new().name("delta-care".into()).spawn(move || {
            for job in todo {
                // Whoever waits for a job that panics learns it from the closed channel.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs `work` after what is queued already.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DeltaError> {
        let (done, result) = oneshot::channel();
        let job = move || {
            let _ = done.send(work());
        };
        let queued = self.jobs.send(Box::new(job));
        queued.map_err(|_| DeltaError::Interrupted("the thread for the care of tables has ended".into()))?;
        result.await.map_err(|_| DeltaError::Interrupted("the care of a table panicked".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_and_the_next_one_runs() {
        let worker = Worker::start().unwrap();
        let interrupted = worker.run(|| -> () { panic!("as asked") }).await;
        assert!(matches!(interrupted, Err(DeltaError::Interrupted(_))));
        assert_eq!(worker.run(|| 1).await.unwrap(), 1);
    }
}
