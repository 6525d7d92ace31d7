# Hints that a base may have landed; listing stays the truth, so a lost or doubled message does no harm.
resource "aws_sqs_queue" "events" {
  count                     = var.events ? 1 : 0
  name_prefix               = "oral-ray-"
  message_retention_seconds = 345600
  sqs_managed_sse_enabled   = true
}

data "aws_iam_policy_document" "events" {
  count = var.events ? 1 : 0
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.events[0].arn]
    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }
    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [aws_s3_bucket.store.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "events" {
  count     = var.events ? 1 : 0
  queue_url = aws_sqs_queue.events[0].id
  policy    = data.aws_iam_policy_document.events[0].json
}

resource "aws_s3_bucket_notification" "events" {
  count  = var.events ? 1 : 0
  bucket = aws_s3_bucket.store.id
  queue {
    queue_arn     = aws_sqs_queue.events[0].arn
    events        = ["s3:ObjectCreated:*"]
    filter_prefix = "${var.prefix}/bases/"
  }
  depends_on = [aws_sqs_queue_policy.events]
}
