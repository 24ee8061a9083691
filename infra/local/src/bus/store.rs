//! The database file: opening, reopening after a failure, and what deliverers read.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{OnceLock, PoisonError, RwLock};

use anyhow::{Context, Result, anyhow};
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};
use shared::clock::Micros;
use shared::durable::{self, Place};

use super::Queue;
use super::record::Record;

/// Opens or creates the database; called again after every failed write.
pub(super) type OpenDatabase = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// Message id to record.
pub(super) type MessagesTable<'a> = TableDefinition<'a, u64, &'static [u8]>;
/// Message id to the number of deliveries tried.
pub(super) type AttemptsTable<'a> = TableDefinition<'a, u64, u32>;
/// The one row of a table of numbers: ids below it may have been given.
pub(super) const RESERVED_IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("reserved_ids");

impl Queue {
    pub(super) fn messages(&self) -> MessagesTable<'_> {
        TableDefinition::new(&self.messages_table)
    }

    pub(super) fn attempts(&self) -> AttemptsTable<'_> {
        TableDefinition::new(&self.attempts_table)
    }
}

/// redb refuses all work after an I/O error (a full disk) until the file is opened anew, so the database is a value
/// that can be replaced. Only the writer replaces it.
pub(super) struct Store {
    open: OpenDatabase,
    database: RwLock<Option<Database>>,
    /// The file, once it is known.
    place: OnceLock<Place>,
}

/// A message read for delivery.
pub(super) struct Fetched {
    pub id: u64,
    /// Deliveries tried before.
    pub attempts: u32,
    pub record: Vec<u8>,
}

/// Messages to deliver again: id and deliveries tried before.
pub(super) type Again = VecDeque<(u64, u32)>;

/// How much a deliverer can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub messages: usize,
    pub bytes: usize,
}

/// Why a file cannot be opened, and what to do.
pub(super) fn explain(error: DatabaseError, path: &Path) -> anyhow::Error {
    let path = path.display();
    match error {
        DatabaseError::DatabaseAlreadyOpen => anyhow!(
            "{path} is in use: another `contextflow dev` runs on this data folder; stop it, or give another folder with \
             --data-dir"
        ),
        DatabaseError::Storage(StorageError::Io(error))
            if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            anyhow!("{path}: {error}; give a folder that can be written with --data-dir")
        }
        error => anyhow!(
            "{path} is damaged ({error}); move it away to begin with an empty bus: events in it that had not landed are \
             lost, and their senders may send them again"
        ),
    }
}

impl Store {
    pub fn open(open: OpenDatabase, queues: &[Queue]) -> Result<Self> {
        let mut database = open()?;
        // Tables exist from here on, so that readers need not ask.
        let transaction = database.begin_write()?;
        transaction.open_table(RESERVED_IDS)?;
        let mut waiting = 0;
        for queue in queues {
            waiting += transaction.open_table(queue.messages())?.len()?;
            transaction.open_table(queue.attempts())?;
        }
        transaction.commit()?;
        if waiting == 0 {
            // The file keeps the size of the largest backlog it has held, as free pages. Here, where there is nothing
            // to move, they cost next to nothing to give back.
            database.compact()?;
        }
        Ok(Self { open, database: RwLock::new(Some(database)), place: OnceLock::new() })
    }

    /// Makes the file's name outlive a crash, and holds the store to this file: where it is removed, nothing more counts
    /// as stored.
    pub fn stay_at(&self, path: &Path) -> io::Result<()> {
        durable::sync_folder(path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new(".")))?;
        let place = Place::of(path)?;
        self.place.get_or_init(|| place);
        Ok(())
    }

    /// Fails where the file is not where it was opened.
    pub fn verify(&self) -> io::Result<()> {
        self.place.get().map_or(Ok(()), Place::verify)
    }

    /// A transaction to write in; opens the file first where [`Store::close`] has closed it.
    pub fn begin_write(&self) -> Result<WriteTransaction> {
        // Not to create another file in the place of one that was removed.
        self.verify()?;
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some((self.open)().context("failed to reopen the bus's file")?);
        }
        Ok(database.as_ref().context("the bus's file is closed")?.begin_write()?)
    }

    /// Closes the file, so that the next write opens it anew.
    pub fn close(&self) {
        self.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn begin_read(&self) -> Result<ReadTransaction> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        Ok(database.as_ref().context("the bus's file is closed after a failed write")?.begin_read()?)
    }

    /// Ids below this may have been given before the file was opened.
    pub fn reserved_ids(&self) -> Result<u64> {
        let table = self.begin_read()?.open_table(RESERVED_IDS)?;
        Ok(table.get("")?.map_or(1, |id| id.value()))
    }

    /// The number of messages in a queue.
    pub fn count(&self, queue: &Queue) -> Result<u64> {
        Ok(self.begin_read()?.open_table(queue.messages())?.len()?)
    }

    /// When the first message of a queue was published.
    pub fn oldest(&self, queue: &Queue) -> Result<Option<Micros>> {
        let table = self.begin_read()?.open_table(queue.messages())?;
        let first = table.first()?;
        Ok(first.and_then(|(_, record)| Some(Record::decode(record.value())?.published_at)))
    }

    /// Reads `again` (id and attempts), then messages with an id above `after`, as far as there is `room`; bytes may
    /// be exceeded by the last one. What was read of `again` is taken from its front; an id that is no longer in the
    /// queue is passed over.
    pub fn fetch(&self, queue: &Queue, again: &mut Again, after: u64, room: Room) -> Result<Vec<Fetched>> {
        let transaction = self.begin_read()?;
        let messages = transaction.open_table(queue.messages())?;
        let mut fetched = Vec::new();
        let mut bytes = 0;
        while bytes < room.bytes
            && let Some((id, attempts)) = again.pop_front()
        {
            if let Some(record) = messages.get(id)? {
                bytes += record.value().len();
                fetched.push(Fetched { id, attempts, record: record.value().to_vec() });
            }
        }
        let attempts = transaction.open_table(queue.attempts())?;
        for row in messages.range(after + 1..)? {
            if fetched.len() >= room.messages || bytes >= room.bytes {
                break;
            }
            let (id, record) = row?;
            let (id, record) = (id.value(), record.value().to_vec());
            bytes += record.len();
            let attempts = attempts.get(id)?.map_or(0, |attempts| attempts.value());
            fetched.push(Fetched { id, attempts, record });
        }
        Ok(fetched)
    }
}
