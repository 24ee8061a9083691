//! What of a row that lands is worth a finding.

/// A rule of a table; a row that breaks it lands and is reported.
#[derive(Debug)]
pub struct Finding {
    /// Its name in reports.
    pub name: String,
    /// Index in [`super::Mapping::tables`].
    pub table: usize,
    /// The column that the rule is about, as its path.
    pub column: String,
    /// What has to hold.
    pub rule: Rule,
}

/// A column, or a field of each element of a REPEATED column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Index of the column.
    pub column: usize,
    /// Index of the field of its elements.
    pub field: Option<usize>,
}

/// What has to hold.
#[derive(Debug)]
pub enum Rule {
    /// A STRING that no other row of the load has.
    Unique(Spot),
    /// A REPEATED column with elements.
    NotEmpty(Spot),
    /// A time on the day that stands in the file's name.
    FileDay(Spot),
    /// A STRING of this list.
    OneOf(Spot, Vec<String>),
    /// An INTEGER of this size.
    AtLeast(Spot, i64),
    /// A NUMERIC that is the sum over the elements of a NUMERIC field times an INTEGER field.
    SumOf {
        /// The sum.
        total: Spot,
        /// The NUMERIC field.
        price: Spot,
        /// The INTEGER field of the same column.
        quantity: Spot,
    },
}
