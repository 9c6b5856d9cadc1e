"""What one may read from the tables and what not: written by hand, after the results."""

READING = """### Read it so

Written by hand after the results; everything else on this page comes from the records.

- CoOp does here what its successors say of it: 9 points gained on base classes, 6 lost on new ones against a hand
  template (just shown), and 13 lost with 16 vectors that start from noise.
- That CoCoOp, MaPLe and CoPrompt mend this is not shown. All three had the same 100 steps as everything else, and a
  rate chosen by fitted classes alone; their authors train longer at rates that they found. What does keep new classes
  here are two that hold on to features of hand-written prompts, `kgcoop` and `promptsrc`: just, and unclaimed.
- CoPrompt's regulariser works: without it 12 points more are lost on new classes, at the same accuracy on base ones.
  But with it, too, new classes are not better than CoOp's. The method learns 100,992 numbers in all four layers of both
  towers of a model of 2.3 M, where CoOp learns 512; whether that is why was not tried.
- Context of its own for each class was to be worse at 1 and 2 shots. At 2 it is better, by 12 points. A class's shots
  are one drawing, so there is probably little to learn wrongly but the style: in the other style it is the worst row,
  and `tip_adapter`, which compares with the shots themselves, leads in the style that it saw and loses in the other.
- In the other style nothing that was learned is better than a hand template, and `kgcoop` and `promptsrc` lose least.
  It is the strictest of the tables, and the one to look at before the others.
- `coop, M=16` gains from 1 shot to 4 and nothing after: 68.5, 68.9, 68.7. So the claim that it grows throughout fails,
  by 0.2 points; all numbers of shots have the same 100 steps, where the authors train longer on more.
- Labels dealt out at random leave 7 points above chance, not 5 or less: 16 vectors that all classes share can hardly
  learn 320 wrong labels, and the names are still in the texts. With `coop, M=16` this control says little.
- "Weight 0 is MaPLe with adapters" holds to the bit. Both are one method with other fields here, so this says that the
  presets agree and that nothing else of CoPrompt's is left over; what the parts compute is held to the authors' logits
  by other tests.
- Which hand template is chosen hardly matters (0.3 points against "a photo of a"): tiny-clip was trained on most of
  them. The papers' models differ by far more, so a good template is worth less here than there.
- Of the 14 choices on `val` 11 fell on an end of what was tried, so a wider choice might serve those methods better.
  The three rates were set beforehand on an unfinished tiny-clip, with `val` pictures of classes not reported here.
- Of handwritten digits the model knows nothing (zero-shot near chance). Only what has something of its own for each
  class (`coop, class-specific`, `tip_adapter`) learns them well.
- Speed: fits are 5 and 6 times faster, CoCoOp predicts 7 times faster. The claim fails by CoOp's predictions in batches
  of 32 (2.5 times): reading the texts once instead of at every batch leaves the pictures, which cost both alike. For a
  picture after others it is 51 times. With pictures encoded in every step, as fits that perturb them must, a step of
  CoOp's is 2.6 times faster.
"""
