"""Small files in the nine layouts of GLUE, written by hand, and what they hold."""

BOM = "\ufeff"

# folder/file -> its text
FILES = {
    "CoLA/train.tsv": "gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tCat the sat.\n",
    # The last line has no end, and a quote opens that nothing closes.
    "CoLA/dev.tsv": 'gj04\t1\t\t"Who came?\ngj04\t0\t*\tCame who?',
    "CoLA/test.tsv": "index\tsentence\n0\tBill sang.\n1\tSang Bill the.\n",
    "SST-2/train.tsv": "sentence\tlabel\na joy \t1\ndull \t0\n",
    "SST-2/dev.tsv": "sentence\tlabel\r\na gem \t1\r\n",
    "SST-2/test.tsv": "index\tsentence\n0\tuneasy mishmash\n",
    "MRPC/train.tsv": BOM
    + "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe ran .\tHe was running .\n",
    "MRPC/dev.tsv": BOM
    + 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t3\t4\t" Yes , " he said .\tNo .\n',
    "MRPC/test.tsv": BOM + "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA .\tB .\n",
    # The second row was cut at a line end that its question held.
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "0\t1\t2\tWhy?\tHow?\t0\n"
    "1\t3\t4\tWhat is\n"
    "2\t5\t6\tWho is it?\tWho is that?\t1\n",
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tWhen?\tAt?\t1\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\tWhere?\tWhere to?\n",
    # The second sentence holds a line separator, at which no line of the file ends.
    "STS-B/train.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
    "\tsentence2\tscore\n0\tmain\tMSRvid\t2012\t0\tnone\tnone\tA plane."
    "\tAn air\u2028plane.\t5.000\n",
    "STS-B/dev.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
    "\tsentence2\tscore\n0\tmain\tMSRvid\t2012\t0\tnone\tnone\tA man.\tA child.\t1.250\n",
    "STS-B/test.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
    "\tsentence2\n0\tmain\tMSRvid\t2012\t0\tnone\tnone\tA girl.\tA woman.\n",
    "MNLI/train.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
    "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1"
    "\tgold_label\n0\t3\t3n\tfiction\t( a )\t( b )\t(A)\t(B)\tIt rains.\tIt is wet.\tneutral"
    "\tneutral\n",
    "MNLI/dev_matched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
    "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1"
    "\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n0\t6\t6e\tslate\t( a )\t( b )\t(A)\t(B)\tNews."
    "\tThere is news.\tneutral\tentailment\tentailment\tentailment\tneutral\tentailment\n",
    "MNLI/dev_mismatched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
    "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1"
    "\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n0\t7\t7c\tletters\t( a )\t( b )\t(A)\t(B)\tHi."
    "\tBye.\tneutral\tneutral\tcontradiction\tcontradiction\tcontradiction\tcontradiction\n",
    "MNLI/test_matched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
    "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\n"
    "0\t8\t8\ttravel\t( a )\t( b )\t(A)\t(B)\tTo sea.\tTo land.\n",
    "MNLI/test_mismatched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
    "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\n"
    "0\t9\t9\tverbatim\t( a )\t( b )\t(A)\t(B)\tWords.\tLetters.\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho won?\tShe won.\tentailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWhen?\tIt is red.\tnot_entailment\n",
    "QNLI/test.tsv": "index\tquestion\tsentence\n0\tWhere?\tIn Rome.\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tNo oil.\tOil.\tnot_entailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tShe died.\tShe lived.\tentailment\n",
    "RTE/test.tsv": "index\tsentence1\tsentence2\n0\tA.\tB.\n",
    "WNLI/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tIt fell.\tThe cup fell.\t1\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tIt sat.\tThe cat sat.\t0\n",
    "WNLI/test.tsv": "index\tsentence1\tsentence2\n0\tIt ran.\tThe dog ran.\n",
}

# (task, split) -> its rows: the texts, and the label
ROWS = {
    ("cola", "train"): [(("The cat sat.",), 1), (("Cat the sat.",), 0)],
    ("cola", "dev"): [(('"Who came?',), 1), (("Came who?",), 0)],
    ("cola", "test"): [(("Bill sang.",), None), (("Sang Bill the.",), None)],
    ("sst2", "train"): [(("a joy ",), 1), (("dull ",), 0)],
    ("sst2", "dev"): [(("a gem ",), 1)],
    ("sst2", "test"): [(("uneasy mishmash",), None)],
    ("mrpc", "train"): [(("He ran .", "He was running ."), 1)],
    ("mrpc", "dev"): [(('" Yes , " he said .', "No ."), 0)],
    ("mrpc", "test"): [(("A .", "B ."), None)],
    ("qqp", "train"): [(("Why?", "How?"), 0), (("Who is it?", "Who is that?"), 1)],
    ("qqp", "dev"): [(("When?", "At?"), 1)],
    ("qqp", "test"): [(("Where?", "Where to?"), None)],
    ("stsb", "train"): [(("A plane.", "An air\u2028plane."), 5.0)],
    ("stsb", "dev"): [(("A man.", "A child."), 1.25)],
    ("stsb", "test"): [(("A girl.", "A woman."), None)],
    ("mnli", "train"): [(("It rains.", "It is wet."), 1)],
    ("mnli", "dev_matched"): [(("News.", "There is news."), 0)],
    ("mnli", "dev_mismatched"): [(("Hi.", "Bye."), 2)],
    ("mnli", "test_matched"): [(("To sea.", "To land."), None)],
    ("mnli", "test_mismatched"): [(("Words.", "Letters."), None)],
    ("qnli", "train"): [(("Who won?", "She won."), 0)],
    ("qnli", "dev"): [(("When?", "It is red."), 1)],
    ("qnli", "test"): [(("Where?", "In Rome."), None)],
    ("rte", "train"): [(("No oil.", "Oil."), 1)],
    ("rte", "dev"): [(("She died.", "She lived."), 0)],
    ("rte", "test"): [(("A.", "B."), None)],
    ("wnli", "train"): [(("It fell.", "The cup fell."), 1)],
    ("wnli", "dev"): [(("It sat.", "The cat sat."), 0)],
    ("wnli", "test"): [(("It ran.", "The dog ran."), None)],
}
FOLDERS = dict(
    cola="CoLA",
    sst2="SST-2",
    mrpc="MRPC",
    qqp="QQP",
    stsb="STS-B",
    mnli="MNLI",
    qnli="QNLI",
    rte="RTE",
    wnli="WNLI",
)


def write(folder):
    """All of them, in `folder`."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(text.encode())
    return folder
