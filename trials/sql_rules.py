"""Which SQL is answered: what a statement may name, judged on DuckDB's own parse of it, before any of it is run.

    >>> faults('{"error": false, "statements": [...]}', ["searches", "trials", "reports"])
    ["sql: unknown function 'getenv'. ..."]

The parse is the JSON of `json_serialize_sql`. Tables are ours and the statement's own common table expressions, and
functions are those listed here: whatever reads a file, a setting, the environment or a catalogue is none of them, and
neither is what the next version of DuckDB brings.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from search_spaces.faults import Invalid, unknown

_FUNCTIONS = """
    abs acos acosh age aggregate ago any_value apply approx_count_distinct approx_quantile approx_top_k arbitrary
    arg_max arg_max_null arg_max_nulls_last arg_min arg_min_null arg_min_nulls_last argmax argmin array_agg
    array_aggr array_aggregate array_append array_apply array_cat array_concat array_contains array_distance
    array_distinct array_extract array_filter array_grade_up array_has array_has_all array_has_any array_indexof
    array_intersect array_length array_pop_back array_pop_front array_position array_prepend array_push_back
    array_push_front array_reduce array_resize array_reverse array_reverse_sort array_select array_slice array_sort
    array_to_json array_to_string array_transform array_unique array_value array_where array_zip ascii asin asinh
    atan atan2 atanh avg base64 bin bit_and bit_count bit_length bit_or bit_xor bool_and bool_or cardinality cbrt
    ceil ceiling char_length character_length chr coalesce columns concat concat_ws contains corr cos cosh cot count
    count_if count_star countif covar_pop covar_samp cume_dist current_date current_localtime current_localtimestamp
    damerau_levenshtein date_add date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day
    dayname dayofmonth dayofweek dayofyear days_in_month degrees dense_rank element_at ends_with entropy epoch
    epoch_ms epoch_ns epoch_us even exp factorial favg fdiv fill filter first first_value flatten floor fmod format
    formatreadabledecimalsize formatreadablesize format_bytes from_base64 from_binary from_hex fsum gamma gcd
    generate_series geomean geometric_mean grade_up greatest greatest_common_divisor group_concat grouping hamming
    hash hex histogram histogram_exact hour if ifnull ilike_escape instr isfinite isinf isnan isodow isoyear jaccard
    jaro_similarity jaro_winkler_similarity json json_array json_array_length json_contains json_deep_merge
    json_exists json_extract json_extract_path json_extract_path_text json_extract_string json_group_array
    json_group_object json_insert json_keys json_merge_patch json_merge_patch_diff json_normalize json_object
    json_pretty json_quote json_remove json_replace json_set json_strip_nulls json_structure json_type json_valid
    json_value kahan_sum kurtosis kurtosis_pop lag last last_day last_value lcase lcm lead least
    least_common_multiple left len length levenshtein lgamma like_escape list list_aggr list_aggregate
    list_any_value list_append list_apply list_approx_count_distinct list_avg list_bit_and list_bit_or list_bit_xor
    list_bool_and list_bool_or list_cat list_concat list_contains list_count list_distinct list_element list_entropy
    list_extract list_filter list_first list_grade_up list_has list_has_all list_has_any list_histogram list_indexof
    list_intersect list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median list_min list_mode
    list_pack list_position list_prepend list_product list_reduce list_resize list_reverse list_reverse_sort
    list_select list_sem list_skewness list_slice list_sort list_stddev_pop list_stddev_samp list_string_agg
    list_sum list_transform list_unique list_value list_var_pop list_var_samp list_where list_zip listagg ln log
    log10 log2 lower lpad ltrim mad make_date make_time make_timestamp make_timestamp_ms make_timestamp_ns
    make_timestamptz map map_concat map_contains map_contains_entry map_contains_value map_entries map_extract
    map_extract_value map_from_entries map_keys map_values max max_by md5 mean median microsecond millisecond min
    min_by minute mismatches mod mode month monthname nanosecond nfc_normalize normalized_interval not
    not_ilike_escape not_like_escape now nth_value ntile nullif octet_length ord overlay percent_rank pg_typeof pi
    position pow power prefix printf product quantile quantile_cont quantile_disc quarter radians random range rank
    rank_dense reduce regexp_escape regexp_extract regexp_extract_all regexp_full_match regexp_matches
    regexp_replace regexp_split_to_array regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy repeat replace reservoir_quantile reverse right round round_even roundbankers row row_number
    rpad rtrim second sem sha1 sha256 sign signbit sin sinh skewness split split_part sqrt starts_with stddev
    stddev_pop stddev_samp str_split str_split_regex strftime string_agg string_split string_split_regex
    string_to_array strip_accents strlen strpos strptime struct_extract struct_extract_at struct_insert struct_keys
    struct_pack struct_values substr substring suffix sum sum_no_overflow sumkahan tan tanh time_bucket to_base
    to_base64 to_binary to_centuries to_days to_decades to_hex to_hours to_json to_microseconds to_millennia
    to_milliseconds to_minutes to_months to_quarters to_seconds to_timestamp to_weeks to_years today translate trim
    trunc try try_strptime typeof ucase unbin unhex unicode unnest upper var_pop var_samp variance variant_extract
    variant_extract_string variant_keys variant_type variant_typeof wavg week weekday weekofyear weighted_avg xor
    year yearweek
"""
_OPERATORS = "!= !__postfix !~~ !~~* % & && * ** + - -> ->> / // < <-> << <= <=> <@ > >= >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~"
FUNCTIONS = frozenset(_FUNCTIONS.split())
OPERATORS = frozenset([*_OPERATORS.split(), "is distinct from", "is not distinct from"])
IN_FROM = frozenset({"unnest"})  # the one function that may stand where a table does
_CATALOGUES = (["main"], ["memory", "main"])


def faults(parsed: str, tables: Collection[str]) -> list[str]:
    """What a parsed statement names that it may not: one sentence a name, each name once."""
    try:
        found: dict[str, Any] = json.loads(parsed)
        if found.get("error"):
            return [f"sql: must be a SELECT that DuckDB accepts, but got: {found.get('error_message')}"]
        return list(dict.fromkeys(_walk(found["statements"], frozenset(), tables)))
    except RecursionError:
        return ["sql: must not be nested that deep; ask in steps, WITH a AS (...)."]


def accept(parsed: str, tables: Collection[str]) -> None:
    """Raises `Invalid` with all `faults`."""
    if found := faults(parsed, tables):
        raise Invalid(found)


def _walk(node: Any, scope: frozenset[str], tables: Collection[str]) -> Iterator[str]:
    """Every fault below a node; `scope` holds the common table expressions that it sees."""
    if isinstance(node, list):
        for item in node:
            yield from _walk(item, scope, tables)
        return
    if not isinstance(node, dict):
        return
    for entry in node.get("cte_map", {}).get("map", []):
        query, name = entry["value"], str(entry["key"]).casefold()
        recursive = query.get("query_node", {}).get("type") == "RECURSIVE_CTE_NODE"
        yield from _walk(query, scope | {name} if recursive else scope, tables)
        scope |= {name}  # what comes later sees it, what came before does not
    yield from _named(node, scope, tables)
    in_from = node.get("type") == "TABLE_FUNCTION"
    for key, value in node.items():
        if key == "cte_map" or (in_from and key == "function"):
            continue
        yield from _walk(value, scope, tables)
    if in_from:
        yield from _walk(node["function"].get("arguments", []), scope, tables)


def _named(node: dict[str, Any], scope: frozenset[str], tables: Collection[str]) -> Iterator[str]:
    """The fault of what a node itself names."""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        yield from _table_faults(node, scope, tables)
    elif kind == "SHOW_REF":
        if "query" not in node and node.get("table_name") != '"tables"':
            yield f"sql: must ask {', '.join(tables)} alone, but got {node.get('table_name')}; write DESCRIBE trials."
    elif kind == "TABLE_FUNCTION":
        name = str(node["function"].get("function_name", ""))
        if name.casefold() not in IN_FROM:
            yield f"sql: must read {', '.join(tables)} alone, but got the table function {name!r}; leave it out."
    elif node.get("class") in ("FUNCTION", "WINDOW"):
        name = str(node.get("function_name", ""))
        if name.casefold() not in FUNCTIONS | OPERATORS:
            yield _unknown_function(name)


def _table_faults(node: dict[str, Any], scope: frozenset[str], tables: Collection[str]) -> Iterator[str]:
    path = node.get("qualified_name", {}).get("path") or [node.get("table_name", "")]
    *places, name = (str(part).casefold() for part in path)
    if places:
        if places not in _CATALOGUES or name not in tables:
            yield unknown("sql", ".".join(map(str, path)), tables, "table")
    elif name not in scope and name not in tables:
        yield unknown("sql", path[-1], tables, "table")


def _unknown_function(name: str) -> str:
    near = unknown("", name, FUNCTIONS, "function").partition(" Known:")[0].removeprefix(": ")
    return f"sql: {near} Functions that only compute on their arguments are known."
