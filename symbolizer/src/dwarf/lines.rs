//! Places of addresses in a unit's line table.

use super::{Place, Unit};

/// For each of `pcs`, which are sorted, its row of the line table; one pass, and
/// no row is kept. `None` where the table has none.
pub(crate) fn places(unit: &Unit<'_>, pcs: &[u64]) -> Vec<Option<Place>> {
    let mut places = vec![None; pcs.len()];
    let Some(program) = unit.line_program.clone() else { return places };
    let mut rows = program.rows();
    let mut missing = pcs.len();
    // The row before, which holds up to the next, and the first of `pcs` that was
    // not passed yet.
    let mut before: Option<(u64, Place)> = None;
    let mut next = 0;
    // A damaged program ends early.
    while missing > 0
        && let Ok(Some((_, row))) = rows.next_row()
    {
        let address = row.address();
        match before {
            None => next = pcs.partition_point(|&pc| pc < address),
            Some((begin, place)) => {
                while next < pcs.len() && pcs[next] < address {
                    // What the linker threw away is left at address 0.
                    if pcs[next] >= begin && begin != 0 && places[next].is_none() {
                        places[next] = Some(place);
                        missing -= 1;
                    }
                    next += 1;
                }
            }
        }
        before = (!row.end_sequence()).then(|| {
            let column = match row.column() {
                gimli::ColumnType::LeftEdge => 0,
                gimli::ColumnType::Column(column) => column.get() as u32,
            };
            let line = row.line().map_or(0, |line| line.get() as u32);
            (address, Place { file: u32::try_from(row.file_index()).ok(), line, column })
        });
    }
    places
}
