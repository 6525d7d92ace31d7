output "store_uri" {
  description = "store.uri of the configuration."
  value       = "s3://${aws_s3_bucket.store.id}/${var.prefix}"
}

output "role_arn" {
  description = "For the annotation eks.amazonaws.com/role-arn of the service accounts."
  value       = aws_iam_role.store.arn
}

output "queue_url" {
  description = "Queue of events, null without them."
  value       = one(aws_sqs_queue.events[*].url)
}
