"""What is seldom meant: numbers, texts, values, lines and bytes that parsers trip over."""

NUMBERS = (
    *("0", "-1", "-0", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", ".nan", ".inf", "1e-400"),
    *("9" * 5000, "1" + "0" * 400, "18446744073709551616", "-9223372036854775809", "2147483648"),
    *("0x10", "0b1", "0o7", "1_000", ".5", "1.", "1:30:99", "٣", "²", "--5", "1e999999999", "nan"),
    *("0.1.2", "+1", " 1", "5e-324", "0.30000000000000004", "1.7976931348623157e308"),
)
TEXTS = (
    *("", " ", "\0", "\ufeff", "\ud800", "\udfff\ud800", "\x1b[2J\x1b]0;x\a", "\u202e", "\u2028"),
    *("\r", "\r\n", "\n", "\t", "\x85", "\x0b", "=cmd()", "../../../etc/passwd", "/dev/null", "~"),
    *("<script>", "{{7*7}}", "%s%n", "\\ud800", "\U0010ffff", "e\u0301", "a,b", "a:b=c"),
    *("true", "null", "original", "bnb-nf4", "-", "--", ".", "..", "*", "x" * 300, "a" * 5000),
)  # fmt: skip
JSON_VALUES = (
    *NUMBERS[:17],
    *(
        "true",
        "false",
        "null",
        "[]",
        "{}",
        '""',
        "[[]]",
        '{"a":{"a":[]}}',
        '"\\ud800"',
        '"\\u0000"',
    ),
    *('{"":0}', '[1,"a",null]', '"x"', "undefined", "'x'", '"\\x"', '"', "[", "{", "]", "}", ","),
)
YAML_VALUES = (
    *NUMBERS,
    *(
        "~",
        "null",
        "yes",
        "[]",
        "{}",
        "[[]]",
        "{a: {b: []}}",
        "&a [*a]",
        "*a",
        "&a x",
        "!!binary x",
    ),
    *("!!python/object/apply:os.system [x]", "!!python/name:os.system", "!!int x", "!!float x"),
    *("!!timestamp x", "2001-99-99", "2001-01-01", "2001-01-01 25:61:61", "=", "<<", "!!set {a}"),
    *(
        "!!omap [a: 1]",
        "!!pairs [a]",
        "? [a]",
        "[a, b]: c",
        "'",
        '"',
        '"\\ud800"',
        '"\\x"',
        "|",
        ">",
    ),
    *(
        "- a",
        "%TAG ! x",
        "---",
        "...",
        "@a",
        "`a",
        "\t",
        "{",
        "[",
        "!<x> y",
        "0o8",
        "1:60",
        "{a, a}",
    ),
)
YAML_BLOCKS = (
    "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "model: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{key}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n"
        for n, key in enumerate(
            ("reference", "members", "nonmembers", "data", "shadow", "variants", "release"), start=1
        )
    )
    + "model_args: {dtype: *a7}\n",
    "x: &a0 {k: v}\n"
    + "".join(f"x{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
    "&a a: *a\n",
    "x: &x {<<: *x}\n",
    "x: &x [*x]\nmodel: *x\n",
    "? {a: b}\n: c\n",
    "? [a]\n: c\n",
    "? &k [*k]\n: c\n",
    "--- a\n--- b\n",
    "<<: x\n",
    "<<: [x]\n",
    "model_args: &m {dtype: *m}\n",
    "%YAML 9.9\n---\n",
)
LINES = (
    "<!-- compleak-llm:begin -->",
    "<!-- compleak-llm:end -->",
    *(
        "```",
        "~~~",
        "````",
        "    ",
        "---",
        "--- ",
        "***",
        "# x",
        "> ",
        "- ",
        "<!--",
        "-->",
        "<div>",
    ),
    *("<!-- compleak-llm:begin -->x", "\t<!-- compleak-llm:end -->", "\ufeff---", "\u2028---"),
    *("model-index:", "- name: x", "  results: []", "base_model: x", "license: &a mit", "x: *a"),
)
BYTES = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\r",
        b"\n",
        b"\r\n",
    ),
    *(
        b"\x1b[2J",
        b"\xe2\x80\xa8",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\x85",
        b"\x0c",
        b"\x1a",
        b'"',
    ),
    *(b"\xe2\x80", b"\\", b"\x00" * 64, b"\xff" * 8, b"\x7f" + b"\xff" * 7),
)
NESTS = (
    ("[", "]"),
    ('{"a":', "}"),
    ("{a: ", "}"),
    ("- ", ""),
    ("> ", ""),
    ("? ", ""),
    ('[{"x":', "}]"),
)
