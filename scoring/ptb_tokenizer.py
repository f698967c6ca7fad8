"""COCO's caption tokenization without Java: what the official evaluation's tokenizer makes of a caption.

The official evaluation runs the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1 over the captions, puts its
tokens in lower case and drops a list of punctuation marks.  That tokenizer is a lexer, and so is this module:
at every place all `RULES` are tried, the one that reaches furthest wins, and of equals the one that stands
first.  A rule may need a context on its right, which counts for its reach but is left for the next token:
"dog's" is `dog` before `'s`, "don't" is `do` before `n't`.

    >>> ptb_tokenize(["A dog's bowl isn't on 5th Ave., it's in the U.S. (red-brick) house."])
    ["a dog 's bowl is n't on 5th ave. it 's in the u.s. -lrb- red-brick -rrb- house"]

Two habits of the official tokenizer surprise.  Parentheses stay, as -lrb- and -rrb-: the list of marks to
drop names them in capitals, and by then the tokens have none.  And a period without a blank behind it joins
two words to one token: "ground.a".
"""

import re
from functools import lru_cache
from string import ascii_lowercase
from typing import NamedTuple
from unicodedata import category

# ------------------------------------------------------------------------------------------------------------
# What tokens are built of.  Patterns respect case: the official lexer knows some things in capitals only.
# ------------------------------------------------------------------------------------------------------------

# A letter of any script.  Python's \w would let in superscripts and fractions too, but these are tokens.
# In a word, soft hyphens, combining marks and vowels written as an HTML entity (&eacute;) count as letters.
# Marks are accents, and in many scripts vowels and tones: Hindi कि, Thai ที่.
LETTER = r"[^\W\d_²³¹¼-¾⁰-₉⅐-↉]"
ALPHANUMERIC = r"[^\W_²³¹¼-¾⁰-₉⅐-↉]"
SCRIPTS = range(0x300, 0x20D0), range(0x3000, 0xABFF), range(0x11000, 0x12000), range(0x1E000, 0x1F000)
MARKS = "".join(  # those of symbols and emoji lie elsewhere
    sign for codes in SCRIPTS for sign in map(chr, codes) if category(sign) in ("Mn", "Mc")
)
WORD_LETTER = rf"(?:{LETTER}|[\u00ad{MARKS}]|&[aeiouAEIOU](?:acute|grave|uml);)"
WORD_PART = rf"{WORD_LETTER}(?:{WORD_LETTER}|\d)*"
WORD = rf"{WORD_PART}(?:[.!?]{WORD_PART})*"  # a missing blank does not part: "ground.a"
NUMBER = r"(?:\d*(?:[.:,\u00ad]\d+)+|\d+)"  # 1,000  12:45  10.14
APOSTROPHE = r"(?:['’\x92]|&apos;)"
LOOSE_APOSTROPHE = r"(?:['’‘‛`\x91\x92]|&apos;)"  # inside a word any of these will do
ENDING = rf"{APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"  # dog's, I'm, they'd, we're, I've, he'll
NEGATION = rf"[nN]{LOOSE_APOSTROPHE}[tT]"  # is|n't
ELIDED = rf"(?:[dDoOlL]{LOOSE_APOSTROPHE}{ALPHANUMERIC})"  # o'clock, hors d'oeuvre
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"  # U.S

# Abbreviations keep their period.  Those of the first kind end a sentence when a capital follows.
MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
STATES = (
    "ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va "
    "vt wis wisc wyo"
)
FIRMS = "inc co cos corp pty ptys ppty pptys pte ptes ppte pptes ltd plc rt bancorp bhd assn univ intl sys"
OTHERS = r"jr sr bros ed\.d ph\.d blvd rd esq bldg tel est ext sq etc al seq"
CAPITALIZED = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # states that are also plain words or names
# Those of the second kind stand before a name.  Single letters are among them: "W. Centre St."
TITLES = (
    "mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl "
    "pvt capt st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens "
    "insp mlle mme msgr sfc vs alex wm jos cie cf treas ph invt elec natl mtg mfg dept"
)
BEFORE_NUMBERS = "ca fig figs prop no nos art bldg pp op"  # No. 5, but not "he says no."
# After a single letter with a period these begin a new sentence, and the period is theirs to lose.
SENTENCE_STARTERS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More "
    "Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While "
    "What Yet You"
)
ASSIMILATIONS = [
    ("can", "not"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("gim", "me"), ("wan", "na"),
    ("'t", "was"), ("'t", "is"),
]  # fmt: skip


class Rule(NamedTuple):
    """One construct of the language: what the token looks like, and what must stand to its right."""

    token: str
    context: str = ""
    straighten_quotes: bool = False


def _any(words: str) -> str:
    """A pattern for any of the blank-separated words, in upper or lower case."""
    return f"(?i:{'|'.join(words.split())})"


def _capitalized(words: str) -> str:
    """A pattern for any of the words, of which the first letter must be a capital."""
    return "|".join(f"{word[0]}(?i:{word[1:]})" for word in words.split())


# ------------------------------------------------------------------------------------------------------------
# The rules, one construct each.  Their order decides between equals only.
# ------------------------------------------------------------------------------------------------------------

ABBREVIATION = rf"(?:{_any(f'{MONTHS_AND_DAYS} {STATES} {FIRMS} {OTHERS}')}|{_capitalized(CAPITALIZED)})"
HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*+(?:-(?:{ACRONYM}\.|[A-Za-z0-9\u00ad]+))+"
COMPOUND = rf"{ELIDED}?{ALPHANUMERIC}+(?:[-_֊‐‑]{ELIDED}?{ALPHANUMERIC}+)*"
FIRM_NAME = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
IN_SENTENCE = "[,;:、]"
MOUTH, EYE = r"[()\[\]{DdPpO\\@|]", r"[-^x=~<>']"

RULES = [
    # Programming languages.
    Rule(r"[cC]\+\+|[cCfF]#"),
    # Words that are two words: can|not, gon|na, 't|is.
    *(Rule(_any(first), _any(second)) for first, second in ASSIMILATIONS),
    # Tags and character entities.  Dashes and no-break spaces leave no token.
    Rule(
        r"<(?:[!?][A-Za-z-][^>\r\n]*|/[A-Za-z][\w:.-]*|[A-Za-z][\w:.-]*"
        r"""(?:[ ]+[A-Za-z][\w:.-]*(?:[ ]*=[ ]*(?:'[^']*'|"[^"]*"))?)*[ ]*/?)[ ]*>"""
    ),
    Rule(r"&(?:amp|#[0-9]+|(?i:mdash|ndash|nbsp));"),
    # Words, before a contraction and alone.
    Rule(WORD, ENDING),
    Rule(r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", NEGATION),
    Rule(WORD),
    # Words with an apostrophe of their own: 'n', 'em, 'til, '90s, B'Gosh, ho'ohu, c'mon.
    Rule(
        rf"{APOSTROPHE}[nN]{APOSTROPHE}?|[lLdDjJ]{APOSTROPHE}|(?i:dunkin|somethin|ol){APOSTROPHE}"
        rf"|{APOSTROPHE}(?i:em|till?|cause)|{APOSTROPHE}[2-9]0[sS]|[A-HJ-XZn]{LOOSE_APOSTROPHE}{LETTER}{{2,}}"
        rf"|{LETTER}+[aeiouyAEIOUY]{LOOSE_APOSTROPHE}[aeiouA-Z]{LETTER}*|[oO]{LOOSE_APOSTROPHE}[oO]"
        r"|(?i:cont'd\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"
    ),
    Rule(rf"[yY]{APOSTROPHE}", LETTER),  # y'all, y'know
    # Addresses, and names as Twitter writes them.
    Rule(r"""(?i:https?)://[^\s"<>|(){}]+[^\s"<>|.!?(){},-]"""),
    Rule(
        r"""(?:(?i:www)\.(?:[^\s"<>|.!?(){},/]+\.)+[A-Za-z]{2,4}|(?:[a-z]+\.)+(?i:com|net|org|edu))"""
        r"""(?:/[^\s"<>|()]+[^\s"<>|.!?(){},-])?"""
    ),
    Rule(r"""(?:&lt;|<)?[A-Za-z0-9][^\s"<>|(){}@]*+@[^\s"<>|(){}.]+(?:\.[^\s"<>|(){}.]+)*(?:&gt;|>)?"""),
    Rule(rf"@[A-Za-z_][A-Za-z_0-9]*|#{WORD_LETTER}+"),
    # Contractions: the part with the apostrophe.
    Rule(ENDING, "[^A-Za-z]", straighten_quotes=True),
    Rule(NEGATION, "[^A-Za-z]", straighten_quotes=True),
    # Dates, numbers, powers, fractions.  "22 3/4" is one token, with a no-break space.
    Rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    Rule(rf"[-+]?{NUMBER}"),
    Rule(r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    Rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|⁄)\d{1,4}"),
    Rule(r"[¼-¾⅓-⅞]"),
    # Oddities of the Treebank: brackets in its own spelling, hanging prefixes.
    Rule(rf"-(?i:[rl][rcs]b)-|(?i:pro-|anti-)|(?i:cap){APOSTROPHE}[nN]|[cC]{APOSTROPHE}(?i:est)"),
    # Either/or, black-and-white/colored.
    Rule(rf"{SLASH_PART}(?:\\?/{SLASH_PART}){{1,2}}"),
    # Money; the number sign too, which once stood for pounds.
    Rule(r"[A-Z]*\$|#"),
    Rule(r"[¢-¥\x80₠€₤؋฿￠￡￥￦]"),
    # A single letter loses its period where a sentence ends.  For that the official tokenizer looks into the
    # next caption, which as a rule begins with "A"; here the end of a caption is the end of a sentence.
    Rule("[A-Za-z]", rf"\.(?:\s+(?:{_capitalized(SENTENCE_STARTERS)}|M(?i:[rs]\.))\s|\s*\Z)"),
    # Abbreviations keep their period: No. 5, Blvd., St., U.S., W., '90.
    Rule(rf"{_any(BEFORE_NUMBERS)}\.", r"\s?\d"),
    Rule(rf"{ABBREVIATION}\.", r"[\s\S]{2}"),
    Rule(rf"(?:{_any(TITLES)}|{ACRONYM}|[A-Za-z])\."),
    Rule(rf"{APOSTROPHE}\d\d", r"\s"),
    # Names of files.
    Rule(
        rf"(?:{WORD_LETTER}|\d)+(?:\.(?:{WORD_LETTER}|\d)+)*\."
        r"(?i:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py"
        r"|sql|tar|txt|wav|x|xml|zip)",
        r"[\s.?!,]",
    ),
    # Before other punctuation any word keeps its period: "a dog., a cat".
    Rule(rf"{WORD}\.", IN_SENTENCE),
    # Telephone numbers, grouped by blanks or hyphens, or by periods: one token, with no-break spaces.
    Rule(r"(?:\([0-9]{2,3}\) ?|\+{0,2}(?:[0-9]{2,4}[- ]){1,2})[0-9]{3,4}[- ]?[0-9]{3,5}"),
    Rule(r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # Smileys, comparison signs, brackets.
    Rule(r'"|(?i:&quot;)', straighten_quotes=True),
    Rule(r"(?i:[<>]|&lt;|&gt;)"),
    Rule(rf"[<>]?[:;=][-o*']?{MOUTH}", "[^A-Za-z0-9]"),
    Rule(rf"{EYE}_{EYE}|\({EYE}[_.]?{EYE}\)"),
    Rule(r"[()\[\]{}]"),
    # Runs of one mark.
    Rule(r"-+|\.{3,5}|\.|@+|_+|#+|\*+|(?:\\\*){1,3}|[?!]+|…"),
    Rule(r"[,;:、¡¿=/。]"),
    # Hyphenated words and other compounds: double-decker, 10-29-2011, jack-o-lantern, snow_board, AT&T.
    Rule(HYPHENATED),
    Rule(rf"{HYPHENATED}\.", IN_SENTENCE),
    Rule(COMPOUND),
    Rule(rf"{COMPOUND}\.", IN_SENTENCE),
    Rule(FIRM_NAME),
    Rule(rf"{FIRM_NAME}\.", IN_SENTENCE),
    # Quotation marks; what is left of contractions before letters.
    Rule("'", r"[A-Za-z][^ \t\n\r\u00a0]", straighten_quotes=True),
    Rule(ENDING, straighten_quotes=True),
    Rule(NEGATION, straighten_quotes=True),
    Rule(rf"[`‘’‚‛“”„‟‹›«»\x91-\x94]{{1,2}}|''|{APOSTROPHE}", straighten_quotes=True),
    Rule("<<|>>"),
    # Symbols that stand alone.  Whatever no rule knows, emoji above all, leaves no token.
    Rule(r"[+%&~^|\\¦-¿×÷†-•‰-⁂⁺-₎℀-⯿〒・！-･]"),
]

COMPILED_RULES = [(re.compile(f"({token}){context}"), straighten) for token, context, straighten in RULES]

# Most words are plain: letters, then a blank, or comma or period and a blank.  These need no rules, unless
# the period may belong to an abbreviation or the word is two words.
PLAIN_WORD = re.compile(r"([A-Za-z]+)([,.]?)(?=\s)")
NEVER_PLAIN = {first + second for first, second in ASSIMILATIONS}
ABBREVIATED = {*ascii_lowercase, *CAPITALIZED.lower().split(), *BEFORE_NUMBERS.split(), *TITLES.split()}
ABBREVIATED |= set(f"{MONTHS_AND_DAYS} {STATES} {FIRMS} {OTHERS}".split())
BLANKS = re.compile(r"\s*")

QUOTES = str.maketrans({
    '"': "''", "‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'",
    "“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''",
})  # fmt: skip
BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0", "\u00ad": None})
REWRITTEN = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">",
    "¢": "cents", "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
}  # fmt: skip
DROPPED = {
    "", "''", "'", "``", "`", ".", "?", "!", ",", ":", ";", "-", "--", "---", "----", "...", "....", ".....",
    "…", "&mdash;", "&ndash;", "&nbsp;",
}  # fmt: skip


def ptb_tokenize(captions: list[str]) -> list[str]:
    """The tokens that the official COCO caption evaluation makes of each caption, joined by blanks.

    A caption's tokens depend on that caption alone, and tokenizing never fails: a caption of nothing but
    punctuation becomes an empty string.

    Args:
        captions: captions as people or models wrote them.

    Returns:
        One string a caption: lower-case tokens without punctuation.  "22 3/4" is one, with a no-break space.
    """
    return [" ".join(_tokens(caption)) for caption in captions]


def _tokens(caption: str) -> list[str]:
    # The added blanks give every context something to look at.
    text = caption.replace("\n", " ") + "\n\n"
    tokens, position = [], BLANKS.match(text).end()
    while position < len(text):
        plain = PLAIN_WORD.match(text, position)
        word = plain[1].lower() if plain else ""
        if plain and word not in NEVER_PLAIN and not (plain[2] == "." and word in ABBREVIATED):
            tokens.append(word)
            position = plain.end()
        else:
            token, position = _next_token(text, position)
            if token not in DROPPED:
                tokens.append(token)
        position = BLANKS.match(text, position).end()
    return tokens


def _next_token(text: str, position: int) -> tuple[str, int]:
    """The token at `position` as written out, and where it ends: the furthest reach, the first of equals."""
    reach, end, straighten = position, position + 1, False
    for pattern, straightens in COMPILED_RULES:
        match = pattern.match(text, position)
        if match and match.end() > reach:
            reach, end, straighten = match.end(), match.end(1), straightens
    if reach == position:
        return "", end  # unknown to all rules
    return _written_out(text[position:end], straighten), end


@lru_cache(maxsize=4096)
def _written_out(token: str, straighten_quotes: bool) -> str:
    """A token in the Treebank's spelling: lower case, quotes as in LaTeX, -lrb- for a parenthesis."""
    token = token.lower().replace("&amp;", "&")
    if straighten_quotes:
        token = token.replace("&apos;", "'").replace("&quot;", '"').translate(QUOTES)
    return REWRITTEN.get(token) or token.translate(BRACKETS)
