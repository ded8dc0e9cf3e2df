//! Lists in pages: `?limit=` items after `?cursor=`.

use serde::Serialize;

use super::problem::Problem;

/// Items of a page where none are named.
pub(super) const DEFAULT: u32 = 100;

/// Most items of a page.
pub(super) const MAX: u32 = 1_000;

/// One page. Without `next` it is the last.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page of at most `limit` items out of one more than that; the
    /// cursor of the last item that is shown leads on.
    pub(super) fn new(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(cursor) } else { None };
        Self { items, next }
    }
}

/// Checks a wished-for number of items.
pub(super) fn limit(wished: Option<u32>) -> Result<u32, Problem> {
    match wished.unwrap_or(DEFAULT) {
        limit @ 1..=MAX => Ok(limit),
        _ => Err(Problem::malformed("limit is not 1 to 1000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_with_more_behind_it_leads_on() {
        let page = |items: &[u8]| Page::new(items.to_vec(), 2, ToString::to_string);
        assert_eq!(page(&[1, 2]).next, None);
        let first = page(&[1, 2, 3]);
        assert_eq!((first.items, first.next.as_deref()), (vec![1, 2], Some("2")));
    }
}
