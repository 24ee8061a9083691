//! A dataset with the analysts' views and those of conflicts: each is planned when a query names it, from the text that
//! BigQuery has.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::datafusion::catalog::{SchemaProvider, TableProvider};
use deltalake::datafusion::config::Dialect;
use deltalake::datafusion::datasource::ViewTable;
use deltalake::datafusion::error::Result as QueryResult;
use deltalake::datafusion::execution::SessionState;
use deltalake::datafusion::sql::parser::Statement;
use deltalake::datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Select, TableFactor, TableWithJoins,
    Value, VisitMut as _, VisitorMut,
};
use deltalake::datafusion::sql::sqlparser::dialect::BigQueryDialect;
use deltalake::datafusion::sql::sqlparser::parser::{Parser, ParserError};

use crate::views;

/// Tables by name.
pub(super) type Tables = BTreeMap<String, Arc<dyn TableProvider>>;

/// Queries of views by name.
pub(super) type Views = BTreeMap<String, String>;

/// One dataset as queries see it.
#[derive(Debug)]
pub(super) struct Dataset {
    tables: Tables,
    /// Queries of the views by name.
    views: Views,
    /// A session over the tables of all datasets.
    base: Option<Arc<SessionState>>,
}

impl Dataset {
    /// Tables alone.
    pub(super) fn of_tables(tables: Tables) -> Self {
        Self { tables, views: Views::new(), base: None }
    }

    /// The tables of the dataset `name`, its views of conflicts, and of the analysts' views those that read only what `has`
    /// says is there.
    pub(super) fn with_views(
        name: &str,
        tables: Tables,
        mut views: Views,
        base: &Arc<SessionState>,
        has: impl Fn(&str) -> bool,
    ) -> Self {
        let of_dataset = views::all().filter(|view| view.dataset == name && view.reads().all(&has));
        views.extend(of_dataset.map(|view| (view.name.to_string(), view.query().to_string())));
        Self { tables, views, base: Some(Arc::clone(base)) }
    }
}

#[async_trait]
impl SchemaProvider for Dataset {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().chain(self.views.keys()).cloned().collect()
    }

    async fn table(&self, name: &str) -> QueryResult<Option<Arc<dyn TableProvider>>> {
        let (query, base) = match (self.tables.get(name), self.views.get(name), &self.base) {
            (Some(table), _, _) => return Ok(Some(Arc::clone(table))),
            (None, Some(query), Some(base)) => (query, base),
            _ => return Ok(None),
        };
        let mut statement = base.sql_to_statement(query, &Dialect::BigQuery)?;
        translate(&mut statement)?;
        let plan = base.statement_to_plan(statement).await?;
        Ok(Some(Arc::new(ViewTable::new(plan, Some(query.clone())))))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name) || self.views.contains_key(name)
    }
}

/// What the views use of BigQuery's SQL, in the words of `DataFusion`.
fn translate(statement: &mut Statement) -> QueryResult<()> {
    let Statement::Statement(statement) = statement else { return Ok(()) };
    match statement.visit(&mut Translation) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error.into()),
    }
}

struct Translation;

impl VisitorMut for Translation {
    type Break = ParserError;

    /// `FROM a CROSS JOIN UNNEST(a.items) AS item` is a column `item` of `a`: it has the fields that `item.x` names.
    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<ParserError> {
        for from in &mut select.from {
            if let Err(error) = unnest(from) {
                return ControlFlow::Break(error);
            }
        }
        ControlFlow::Continue(())
    }

    /// `TIMESTAMP_TRUNC(t, MINUTE)` is `date_trunc('minute', t)`.
    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<ParserError> {
        if let Expr::Function(function) = expr
            && function.name.to_string().eq_ignore_ascii_case("TIMESTAMP_TRUNC")
            && let FunctionArguments::List(list) = &mut function.args
            && let [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(part))] = list.args.as_mut_slice()
        {
            *part = Expr::value(Value::SingleQuotedString(part.to_string().to_lowercase()));
            list.args.reverse();
            function.name = ObjectName::from(vec![Ident::new("date_trunc")]);
        }
        ControlFlow::Continue(())
    }
}

fn unnest(from: &mut TableWithJoins) -> Result<(), ParserError> {
    let TableFactor::Table { alias: Some(table), .. } = &from.relation else { return Ok(()) };
    let [join] = from.joins.as_slice() else { return Ok(()) };
    let TableFactor::UNNEST { array_exprs, alias: Some(item), .. } = &join.relation else { return Ok(()) };
    let [array] = array_exprs.as_slice() else { return Ok(()) };
    let relation = &from.relation;
    let nested = format!("(SELECT *, UNNEST({array}) AS {} FROM {relation}) AS {}", item.name, table.name);
    from.relation = Parser::new(&BigQueryDialect {}).try_with_sql(&nested)?.parse_table_factor()?;
    from.joins.clear();
    Ok(())
}
