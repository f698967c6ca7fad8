"""Captions in many scripts, and what the tokenizer's normalizer is to make of each."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import process_coco

# By language: a caption as a person writes it, without its accents, and with them.  All of the second and
# third are composed characters in lower case.
CAPTIONS = {
    "English": ("A dog runs on the grass.", "a dog runs on the grass.", "a dog runs on the grass."),
    "German": (
        "Ein größeres Gefährt über dem Rasen",
        "ein großeres gefahrt uber dem rasen",
        "ein größeres gefährt über dem rasen",
    ),
    "Vietnamese": (
        "Một con chó chạy trên cỏ",
        "mot con cho chay tren co",
        "một con chó chạy trên cỏ",
    ),
    "Turkish": ("İki köpek çimde koşuyor", "iki kopek cimde kosuyor", "i̇ki köpek çimde koşuyor"),
    "Greek": ("Ένας σκύλος τρέχει πάνω", "ενας σκυλος τρεχει πανω", "ένας σκύλος τρέχει πάνω"),
    "Russian": ("Чёрный йорк бежит по траве", *["чёрный йорк бежит по траве"] * 2),
    "Ukrainian": ("Її ґедзь сидить на їжаку", *["її ґедзь сидить на їжаку"] * 2),
    "Korean": ("빨간 자동차가 잔디 위에 있다", *["빨간 자동차가 잔디 위에 있다"] * 2),
    "Hindi": ("एक लाल कुत्ता घास पर दौड़ रहा है", *["एक लाल कुत्ता घास पर दौड़ रहा है"] * 2),
    "Bengali": ("একটি লাল কুকুর ঘাসে দৌড়াচ্ছে", *["একটি লাল কুকুর ঘাসে দৌড়াচ্ছে"] * 2),
    "Tamil": ("ஒரு சிவப்பு நாய் புல்லில் ஓடுகிறது", *["ஒரு சிவப்பு நாய் புல்லில் ஓடுகிறது"] * 2),
    "Arabic": ("كلبٌ أَحمرُ يَجري على العُشبِ", *["كلبٌ أَحمرُ يَجري على العُشبِ"] * 2),
    "Persian": ("یک سگ روی چمن می\u200cدود", *["یک سگ روی چمن می\u200cدود"] * 2),
    "Hebrew": ("כֶּלֶב אָדֹם רָץ עַל הַדֶּשֶׁא", *["כֶּלֶב אָדֹם רָץ עַל הַדֶּשֶׁא"] * 2),
    "Georgian": ("წითელი ძაღლი დარბის ბალახზე", *["წითელი ძაღლი დარბის ბალახზე"] * 2),
    "Amharic": ("ቀይ ውሻ በሣር ላይ ይሮጣል", *["ቀይ ውሻ በሣር ላይ ይሮጣል"] * 2),
    "Thai": ("สุนัขสีแดงวิ่งอยู่ที่สนามหญ้า", *["สุนัขสีแดงวิ่งอยู่ที่สนามหญ้า"] * 2),
    "Khmer": ("ឆ្កែក្រហមកំពុងរត់លើស្មៅ", *["ឆ្កែក្រហមកំពុងរត់លើស្មៅ"] * 2),
    "Burmese": ("ခွေးနီတစ်ကောင်မြက်ပေါ်မှာပြေးနေသည်", *["ခွေးနီတစ်ကောင်မြက်ပေါ်မှာပြေးနေသည်"] * 2),
    "Japanese": ("赤い犬がガラスのビルの前を走っている。", *["赤い犬がガラスのビルの前を走っている。"] * 2),
    "Chinese": ("一只红色的狗在草地上跑。", *["一只红色的狗在草地上跑。"] * 2),
}
STRIPPED = {"German", "Vietnamese", "Turkish", "Greek"}
UNSPACED = {"Thai", "Khmer", "Burmese", "Japanese", "Chinese"}


def say(paths: Mapping[str, Path], caption_of: Callable[[int], str]) -> None:
    """Gives the images of a processed data set other captions, by image id, and processes it anew."""
    for split in ("train", "val"):
        content = json.loads(paths[f"{split}_captions"].read_text())
        for entry in content["annotations"]:
            entry["caption"] = caption_of(entry["image_id"])
        paths[f"{split}_captions"].write_text(json.dumps(content))
    for file in paths["processed"].iterdir():  # of other captions, and of no record
        file.unlink()
    process_coco.main(["--captions-only", "--data", str(paths["data"])])
