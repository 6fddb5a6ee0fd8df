"""The algebra of matrices in egglog's own language: what terms are made of, and which are equal.

A term stands for a matrix of fixed shape (a column for a vector, 1 by 1 for a number), or for a batch of
them. The text form of egglog is the same in all its versions, which its Python functions are not.
"""

from __future__ import annotations

from typing import Final

DECLARATIONS: Final = """
(sort M)
(sort Root)
(constructor Leaf (i64) M)
(constructor Num (f64) M)
(constructor Mul (M M) M)
(constructor Add (M M) M)
(constructor T (M) M)
(constructor Scale (M M) M)
(constructor Rows (M M) M)
(constructor Cols (M M) M)
(constructor Had (M M) M)
(constructor Output (i64 M) Root)
(relation one-row (M))
(relation one-column (M))
(relation identity (M))
(ruleset shapes)
(ruleset algebra)
"""
"""`Scale s a` multiplies by a number, `Rows d a` row i by d[i], `Cols d a` column j by d[j]."""

SHAPES: Final = """
(rule ((= x (Num n))) ((one-row x) (one-column x)) :ruleset shapes)
(rule ((= x (Mul a b)) (one-row a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Mul a b)) (one-column b)) ((one-column x)) :ruleset shapes)
(rule ((= x (T a)) (one-row a)) ((one-column x)) :ruleset shapes)
(rule ((= x (T a)) (one-column a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Add a b)) (one-row a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Add a b)) (one-column a)) ((one-column x)) :ruleset shapes)
(rule ((= x (Scale s a)) (one-row a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Scale s a)) (one-column a)) ((one-column x)) :ruleset shapes)
(rule ((= x (Rows d a)) (one-row a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Rows d a)) (one-column a)) ((one-column x)) :ruleset shapes)
(rule ((= x (Cols d a)) (one-row a)) ((one-row x)) :ruleset shapes)
(rule ((= x (Cols d a)) (one-column a)) ((one-column x)) :ruleset shapes)
(rewrite (T a) a :when ((one-row a) (one-column a)) :ruleset shapes)
(rewrite (T (T a)) a :ruleset shapes)
"""

_BOTH_WAYS: Final = (
    # products and sums
    "(Mul (Mul a b) c) = (Mul a (Mul b c))",
    "(Mul a (Add b c)) = (Add (Mul a b) (Mul a c))",
    "(Mul (Add a b) c) = (Add (Mul a c) (Mul b c))",
    "(Add (Add a b) c) = (Add a (Add b c))",
    "(Had a (Add b c)) = (Add (Had a b) (Had a c))",
    # transposes
    "(T (Mul a b)) = (Mul (T b) (T a))",
    "(T (Add a b)) = (Add (T a) (T b))",
    "(T (Rows d a)) = (Cols d (T a))",
    "(T (Had a b)) = (Had (T a) (T b))",
    # numbers
    "(Scale s (Add a b)) = (Add (Scale s a) (Scale s b))",
    "(Scale s (Scale t a)) = (Scale (Scale s t) a)",
    "(Scale (Add s t) a) = (Add (Scale s a) (Scale t a))",
    # diagonals
    "(Rows d (Mul a b)) = (Mul (Rows d a) b)",
    "(Cols d (Mul a b)) = (Mul a (Cols d b))",
    "(Mul (Cols d a) b) = (Mul a (Rows d b))",
    "(Rows d (Add a b)) = (Add (Rows d a) (Rows d b))",
    "(Cols d (Add a b)) = (Add (Cols d a) (Cols d b))",
    "(Rows (Add d e) a) = (Add (Rows d a) (Rows e a))",
    "(Cols (Add d e) a) = (Add (Cols d a) (Cols e a))",
    "(Rows d (Cols e a)) = (Cols e (Rows d a))",
)

_ONE_WAY: Final = (
    "(Add a b) = (Add b a)",
    "(Had a b) = (Had b a)",
    "(Scale s (Scale t a)) = (Scale t (Scale s a))",
    "(Mul a (T b)) = (T (Mul b (T a)))",
    "(Mul (T a) b) = (T (Mul (T b) a))",
    "(Add (T a) (Scale s (T b))) = (T (Add a (Scale s b)))",
    "(Add (Mul a b) (Scale s (Mul a c))) = (Mul a (Add b (Scale s c)))",
    "(Add (Mul b a) (Scale s (Mul c a))) = (Mul (Add b (Scale s c)) a)",
    "(Add (Scale t (Mul a b)) (Scale s (Mul a c))) = (Mul a (Add (Scale t b) (Scale s c)))",
    "(Add (Scale t (Mul b a)) (Scale s (Mul c a))) = (Mul (Add (Scale t b) (Scale s c)) a)",
    "(Add (Rows d a) (Scale s (Rows d b))) = (Rows d (Add a (Scale s b)))",
    "(Add (Cols d a) (Scale s (Cols d b))) = (Cols d (Add a (Scale s b)))",
    "(Add a a) = (Scale (Num 2.0) a)",
)

_OUTWARD: Final = (
    "(Mul (Scale s a) b) = (Scale s (Mul a b))",
    "(Mul a (Scale s b)) = (Scale s (Mul a b))",
    "(T (Scale s a)) = (Scale s (T a))",
    "(Rows d (Scale s a)) = (Scale s (Rows d a))",
    "(Rows (Scale s d) a) = (Scale s (Rows d a))",
    "(Cols d (Scale s a)) = (Scale s (Cols d a))",
    "(Cols (Scale s d) a) = (Scale s (Cols d a))",
    "(Had (Scale s a) b) = (Scale s (Had a b))",
    "(Had a (Scale s b)) = (Scale s (Had a b))",
)
"""Numbers go out of products, not in: each would stand in as many places as there are factors. Where one is
best multiplied with a factor, `pricing` sees to it."""

_CONDITIONAL: Final = """
(rule ((= x (Add a (T b))) (= c (T a))) ((union x (T (Add c b)))) :ruleset algebra)
(rewrite (Mul a s) (Scale s a) :when ((one-row s) (one-column s)) :ruleset algebra)
(rewrite (Mul s a) (Scale s a) :when ((one-row s) (one-column s)) :ruleset algebra)
(rewrite (Scale s t) (Scale t s) :when ((one-row t) (one-column t)) :ruleset algebra)
(rewrite (Rows d a) (Rows a d) :when ((one-column a)) :ruleset algebra)
(rewrite (Had (Mul u v) a) (Rows u (Cols (T v) a)) :when ((one-column u)) :ruleset algebra)
(rewrite (Mul i a) a :when ((identity i)) :subsume :ruleset algebra)
(rewrite (Mul a i) a :when ((identity i)) :subsume :ruleset algebra)
(rewrite (T i) i :when ((identity i)) :subsume :ruleset algebra)
(rewrite (Scale (Num 1.0) a) a :subsume :ruleset algebra)
(rewrite (Scale (Num x) (Num y)) (Num (* x y))
  :when ((< (abs (* x y)) 1000000.0) (> (abs (* x y)) 0.000001)) :ruleset algebra)
(rewrite (Add a (Scale (Num x) a)) (Scale (Num (+ x 1.0)) a)
  :when ((< (abs x) 1000000.0) (!= x -1.0)) :ruleset algebra)
(rewrite (Add (Scale (Num x) a) (Scale (Num y) a)) (Scale (Num (+ x y)) a)
  :when ((< (abs x) 1000000.0) (< (abs y) 1000000.0) (!= (+ x y) 0.0)) :ruleset algebra)
"""
"""No rule loses a variable: what is infinite or no number stays so, and `a - a` is not zero."""


def _rules(command: str, rules: tuple[str, ...]) -> list[str]:
    sides = [rule.split(" = ") for rule in rules]
    return [f"({command} {left} {right} :ruleset algebra)" for left, right in sides]


PROGRAM: Final = "\n".join(
    (
        DECLARATIONS,
        SHAPES,
        *_rules("birewrite", _BOTH_WAYS),
        *_rules("rewrite", _ONE_WAY),
        *_rules("rewrite", _OUTWARD),
        _CONDITIONAL,
    )
)
"""Declarations and rules: what stands before the terms of an island."""
