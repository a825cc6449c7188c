//! Whether the names in a condition exist, also in those parts of it that are not evaluated
//! on the sample: behind an `&&` that is false there, an OOM would be the first to try them.

use cel::common::ast::operators::{ADD, CONDITIONAL, INDEX};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue};
use cel::{Context, ExecutionError, IdedExpr as Expression};
use serde_json::{Map, Value};

/// Checks the names of an expression. `sample` is what the variables of `context` are like;
/// null in it is what nobody knows before. The error is a sentence.
pub(super) fn check(expression: &Expression, sample: &Value, context: &Context<'_, '_>) -> Result<(), String> {
    Names { sample, context, bound: Vec::new() }.shape(expression).map(drop)
}

struct Names<'n> {
    sample: &'n Value,
    context: &'n Context<'n, 'n>,
    /// What macros name, the innermost last.
    bound: Vec<(&'n str, Value)>,
}

impl<'n> Names<'n> {
    /// What an expression comes to, by example: an object has all names that there are, a list
    /// one entry or none, and null may be anything.
    fn shape(&mut self, expression: &'n Expression) -> Result<Value, String> {
        match &expression.expr {
            Expr::Ident(name) => self.variable(name, expression),
            Expr::Select(select) => {
                let of = self.shape(&select.operand)?;
                field(&of, &spelled(&select.operand), &select.field)
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(list) => self.macro_(list),
            Expr::List(list) => {
                let entries = list.elements.iter().map(|entry| self.shape(entry)).collect::<Result<Vec<_>, _>>()?;
                Ok(Value::Array(entries.into_iter().reduce(either).into_iter().collect()))
            }
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| self.entry(&entry.expr)).map(|()| Value::Null),
            Expr::Struct(of) => of.entries.iter().try_for_each(|entry| self.entry(&entry.expr)).map(|()| Value::Null),
            Expr::Literal(LiteralValue::String(_)) => Ok(Value::from("")),
            Expr::Literal(_) | Expr::Unspecified => Ok(Value::Null),
        }
    }

    fn variable(&self, name: &str, expression: &Expression) -> Result<Value, String> {
        let bound = self.bound.iter().rev().find(|(bound, _)| *bound == name).map(|(_, shape)| shape);
        match bound.or_else(|| self.sample.get(name)) {
            Some(shape) => Ok(shape.clone()),
            // Names of types are there, too.
            None if self.is_there(expression) => Ok(Value::Null),
            None => Err(format!("there is no {name}; there are {}", all_of(self.sample))),
        }
    }

    /// Whether cel finds the name; what else is wrong, evaluation tells.
    fn is_there(&self, expression: &Expression) -> bool {
        !matches!(self.context.resolve(expression), Err(ExecutionError::UndeclaredReference(_)))
    }

    fn call(&mut self, call: &'n CallExpr) -> Result<Value, String> {
        // An operator's name is none that somebody could write.
        let is_operator = !call.func_name.starts_with(|c: char| c.is_ascii_alphabetic());
        let without_arguments = |target: Option<Expression>| {
            let call = CallExpr { func_name: call.func_name.clone(), target: target.map(Box::new), args: Vec::new() };
            Expression { id: 0, expr: Expr::Call(call) }
        };
        let mut target = call.target.as_deref();
        let is_bound = |name: &str| self.bound.iter().any(|(bound, _)| *bound == name);
        if let Some(Expression { expr: Expr::Ident(name), .. }) = target
            && !is_bound(name)
            && self.is_there(&without_arguments(target.cloned()))
        {
            // `optional.of` is one name.
            target = target.filter(|_| self.sample.get(name).is_some());
        } else if !is_operator {
            let on_nothing = target.map(|_| Expression { id: 0, expr: Expr::Literal(LiteralValue::Null) });
            if !self.is_there(&without_arguments(on_nothing)) {
                return Err(format!("there is no function {}", call.func_name));
            }
        }
        let parts = target.into_iter().chain(&call.args);
        let shapes = parts.map(|part| self.shape(part)).collect::<Result<Vec<_>, _>>()?;
        Ok(match (call.func_name.as_str(), shapes.as_slice()) {
            (INDEX, [Value::Array(list), _]) => list.first().cloned().unwrap_or_default(),
            (INDEX, [of @ Value::Object(_), _]) => match &call.args[..] {
                [operand, Expression { expr: Expr::Literal(LiteralValue::String(key)), .. }] => {
                    field(of, &spelled(operand), key)?
                }
                _ => Value::Null,
            },
            (CONDITIONAL, [_, yes, no]) => either(yes.clone(), no.clone()),
            (ADD, [Value::Array(one), Value::Array(other)]) => {
                either(Value::Array(one.clone()), Value::Array(other.clone()))
            }
            _ => Value::Null,
        })
    }

    /// `exists`, `map` and the like.
    fn macro_(&mut self, list: &'n ComprehensionExpr) -> Result<Value, String> {
        let range = self.shape(&list.iter_range)?;
        let so_far = self.shape(&list.accu_init)?;
        let entry = match &range {
            Value::Array(entries) => entries.first().cloned().unwrap_or_default(),
            Value::Object(_) => Value::from(""),
            _ => Value::Null,
        };
        let outside = self.bound.len();
        match &list.iter_var2 {
            None => self.bound.push((&list.iter_var, entry)),
            Some(second) => self.bound.extend([(&list.iter_var[..], Value::Null), (second, Value::Null)]),
        }
        self.bound.push((&list.accu_var, so_far));
        self.shape(&list.loop_cond)?;
        let collected = self.shape(&list.loop_step)?;
        self.bound.truncate(outside);
        self.bound.push((&list.accu_var, collected));
        let result = self.shape(&list.result);
        self.bound.truncate(outside);
        result
    }

    fn entry(&mut self, entry: &'n EntryExpr) -> Result<(), String> {
        match entry {
            EntryExpr::StructField(field) => self.shape(&field.value).map(drop),
            EntryExpr::MapEntry(entry) => self.shape(&entry.key).and_then(|_| self.shape(&entry.value)).map(drop),
        }
    }
}

/// What may be the one or the other.
fn either(one: Value, other: Value) -> Value {
    match (&one, &other) {
        _ if one == other => one,
        (Value::Array(entries), Value::Array(_)) if entries.is_empty() => other,
        (Value::Array(_), Value::Array(entries)) if entries.is_empty() => one,
        _ => Value::Null,
    }
}

fn field(of: &Value, path: &str, name: &str) -> Result<Value, String> {
    let no = |why: &str| Err(format!("there is no {path}.{name}; {why}"));
    match of {
        Value::Null => Ok(Value::Null),
        Value::Object(fields) => match fields.get(name) {
            Some(shape) => Ok(shape.clone()),
            None => no(&format!("{path} has {}", all_in(fields))),
        },
        Value::Array(_) => no(&format!("{path} is a list: write {path}.exists(one, one.{name} …)")),
        _ => no(&format!("{path} has no parts")),
    }
}

fn all_of(sample: &Value) -> String {
    sample.as_object().map(all_in).unwrap_or_default()
}

fn all_in(fields: &Map<String, Value>) -> String {
    fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// An expression as it was written, where it is a name.
fn spelled(expression: &Expression) -> String {
    match &expression.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", spelled(&select.operand), select.field),
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == INDEX && !args.is_empty() => {
            format!("{}[…]", spelled(&args[0]))
        }
        _ => "(…)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Condition;

    #[test]
    fn names_are_told_where_the_sample_does_not_come_to_them() {
        for (text, part) in [
            ("processes.exists(p, p.name == 'redis') && memcg.limt < 5.0", "no memcg.limt; memcg has limit, path"),
            ("share('Cache') > 2.0 && foo", "there is no foo; there are age, "),
            ("share('Cache') > 2.0 && machine['memry'] > 1.0", "no machine.memry; machine has available"),
            ("age > 9.0 && processes.exists(p, p.sise > 1.0)", "no p.sise; p has age, exe"),
            ("age > 9.0 && processes[1].sise > 1.0", "no processes[…].sise"),
            ("age > 9.0 && processes.sise > 1.0", "write processes.exists(one, one.sise …)"),
            ("age > 9.0 && age.years > 1.0", "no age.years; age has no parts"),
            ("age > 9.0 && processes.filter(p, p.age > 1.0)[0].siz > 1.0", "siz"),
            ("age > 9.0 && processes.map(p, p.age > 1.0, p).all(q, q.siz > 1.0)", "no q.siz"),
            ("age > 9.0 && stacks.exists(s, s.functions.exists(f, g == 'a'))", "no g"),
            ("age > 9.0 && steps.all(s, has(s.actoin))", "no s.actoin"),
            ("age > 9.0 && size(steps.map(s, {'a': s.rul})) > 0", "no s.rul"),
            ("age > 9.0 && memcg.path.beginsWith('/a')", "no function beginsWith"),
            ("age > 9.0 && shares('a') > 1.0", "no function shares"),
            // Its name is known within the macro alone.
            ("processes.exists(p, p.age > 9.0) && p.age > 1.0", "no p; there are"),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn whatever_exists_may_be_asked_for() {
        for text in [
            "age > 9.0 && memcg.stat.pgfault > 1.0 && memcg.stat['anon'] > 1.0",
            "age > 9.0 && memcg.stat.all(key, memcg.stat[key] > 1.0)",
            "age > 9.0 && processes.filter(p, p.age > 1.0)[0].size > 1.0",
            "age > 9.0 && (age > 1.0 ? processes : [])[0].size > 1.0",
            "age > 9.0 && stacks[0].functions[0].matches('^a') && stacks[0].functions[0].size() > 1",
            "age > 9.0 && [1, 2].exists(x, [x].map(y, y + x)[0] > 1) && {'a': 1}.a == 1",
            "age > 9.0 && type(age) == double && int(age) + int('1') > 0 && string(age) != ''",
            "age > 9.0 && processes.all(share, share.name.contains('a')) && share('a') > 0.0",
            "age > 9.0 && optional.of(age).orValue(1.0) > 0.0",
        ] {
            assert_eq!(Condition::parse(text).err(), None, "{text}");
        }
    }
}
